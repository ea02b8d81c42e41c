"""Which leaves the Gramian is built from, where none, some, or a module are named."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd.errors import InputError, InputsWarning
from tests.oracle import oracle_gramian

F64 = torch.float64


def tokens() -> tuple[nn.Module, Tensor, Tensor]:
    """A frozen embedding whose output requires grad, as fine-tuning with checkpoints makes it."""
    table, head = nn.Embedding(9, 4, dtype=F64).requires_grad_(False), nn.Linear(4, 3, dtype=F64)
    hidden = table(torch.arange(6)).requires_grad_()
    losses = cross_entropy(checkpoint(head, hidden, use_reentrant=False), torch.arange(6) % 3, reduction="none")
    return nn.Sequential(table, head), hidden, losses


def test_an_embedding_output_that_requires_grad_is_left_out() -> None:
    model, _, losses = tokens()
    expected = oracle_gramian(losses, list(model[1].parameters()))
    with pytest.warns(InputsWarning, match=r"the 2 parameters .* not from 1 other leaves .*\(6, 4\)"):
        torch.testing.assert_close(gramjd.gramian(losses), expected)


@pytest.mark.filterwarnings("ignore::gramjd.errors.InputsWarning")
@pytest.mark.parametrize("update", ["backward", "reuse"])
def test_other_leaves_get_their_gradient_all_the_same(update: str) -> None:
    model, hidden, losses = tokens()
    weights = torch.arange(1.0, 7.0, dtype=F64)
    leaves = [hidden, *model[1].parameters()]
    expected = torch.autograd.grad(losses, leaves, weights, retain_graph=True)
    G = oracle_gramian(losses, list(model[1].parameters()))
    for _ in range(3):
        step = gramjd.gram_backward(losses, lambda G: weights, update=update, retain_graph=True)
        torch.testing.assert_close(step.gramian, G)
        torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected))
        for leaf in leaves:
            leaf.grad = None


@pytest.mark.parametrize(
    "call",
    [
        lambda L, **k: gramjd.gramian(L, **k),
        lambda L, **k: gramjd.gramian(L, other=L, **k),
        lambda L, **k: gramjd.gradient_norms(L, **k).square().diag(),
        lambda L, **k: sum(gramjd.gramian(L, per_parameter=True, **k).values()),
        lambda L, **k: gramjd.gram_backward(L, retain_graph=True, **k).gramian,
    ],
    ids=["gramian", "other", "norms", "shares", "step"],
)
def test_a_module_stands_for_its_trained_parameters(call: Callable[..., Tensor]) -> None:
    model, _, losses = tokens()
    model.append(nn.Linear(2, 2, dtype=F64))  # which no loss reaches
    expected = oracle_gramian(losses, list(model[1].parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = call(losses, inputs=model)
    torch.testing.assert_close(found.diagonal(), expected.diagonal())


def test_names_come_from_the_module() -> None:
    model, _, losses = tokens()
    assert list(gramjd.gramian(losses, model, per_parameter=True)) == ["1.weight", "1.bias"]
    assert {use.parameter for use in gramjd.explain(losses, model).uses} == {"1.weight", "1.bias"}


def test_leaves_that_are_no_parameters_count_where_there_is_no_parameter() -> None:
    w = torch.ones(3, requires_grad=True)
    torch.testing.assert_close(gramjd.gramian(w * 2), 4 * torch.eye(3))


def test_tasks_share_parameters_and_not_data() -> None:
    x = torch.randn(5, 3, dtype=F64, requires_grad=True)
    trunk, heads = nn.Linear(3, 4, dtype=F64), [nn.Linear(4, 1, dtype=F64) for _ in range(2)]
    losses = [head(trunk(x).tanh()).square().mean() for head in heads]
    expected = oracle_gramian(losses, list(trunk.parameters()))
    plain = torch.autograd.grad(sum(losses), x, retain_graph=True)[0]
    step = gramjd.mtl_backward(losses)
    torch.testing.assert_close(step.gramian, expected)
    torch.testing.assert_close(x.grad, plain)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float16, torch.bfloat16, torch.complex64, "float"])
def test_dtypes_that_cannot_hold_a_gramian(dtype: object) -> None:
    w = torch.ones(2, requires_grad=True)
    for call in (gramjd.gramian, gramjd.gradient_norms):
        with pytest.raises(InputError, match=r"expected torch.float32, torch.float64"):
            call(w * w, dtype=dtype)


@pytest.mark.parametrize("budget", ["1GB", -1, float("nan"), 1.5, True])
def test_budgets_that_are_no_number_of_bytes(budget: object) -> None:
    w = torch.ones(2, requires_grad=True)
    for call in (gramjd.gramian, gramjd.gradient_norms, gramjd.gram_backward):
        with pytest.raises(InputError, match="expected a whole number of bytes"):
            call(w * w, memory_budget=budget)


def test_losses_that_can_be_gone_through_once() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    for aggregator in (gramjd.UPGrad(), gramjd.aggregation.GaussNewton()):
        step = gramjd.gram_backward((w[k] ** 2 for k in range(2)), aggregator)
        torch.testing.assert_close(step.gramian, torch.tensor([[4.0, 0.0], [0.0, 16.0]]))


def test_a_matrix_of_losses_is_not_a_list_of_tasks() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(gramjd.errors.LossError, match=r"one scalar loss.*got \(16, 2\).*use gram_backward"):
        gramjd.mtl_backward(torch.ones(16, 2) * w)
