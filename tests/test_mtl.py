"""`mtl_backward`: weighted where tasks share, plain gradients where they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gramjd import Constant, Mean, UPGrad, gram_backward, mtl_backward
from gramjd.engine.choice import only
from gramjd.errors import InputError, LossError
from tests.oracle import oracle_gramian, relative_error
from tests.small import F64, mlp

WEIGHTS = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
WAYS = ("walk", "passes")
UPDATES = ("backward", "reuse")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with only(request.param):
        yield request.param


class Tasks(nn.Module):
    """A trunk and a head for each of three tasks; the last two share one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(5, 6, 4)
        self.pair = nn.Linear(4, 4, dtype=F64)
        self.heads = nn.ModuleList(nn.Linear(4, 2, dtype=F64) for _ in range(3))
        self.unused = nn.Linear(2, 2, dtype=F64)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.trunk(x).tanh()
        paired = self.pair(features).tanh()
        return [head(h) for head, h in zip(self.heads, (features, paired, paired), strict=True)]

    def losses(self) -> list[Tensor]:
        return [F.mse_loss(out, torch.randn_like(out)) for out in self(torch.randn(7, 5, dtype=F64))]

    @property
    def shared(self) -> list[Tensor]:
        return [*self.trunk.parameters(), *self.pair.parameters()]


def manual(losses: Sequence[Tensor], weights: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """`sum_i w_i dL_i/dp` by one plain backward a task."""
    totals = [torch.zeros_like(p) for p in inputs]
    for loss, weight in zip(losses, weights, strict=True):
        found = torch.autograd.grad(loss, list(inputs), retain_graph=True, allow_unused=True)
        totals = [t if g is None else t + weight * g for t, g in zip(totals, found, strict=True)]
    return totals


def assert_grads(inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for tensor, value in zip(inputs, expected, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("given", [True, False], ids=["shared given", "shared found"])
@pytest.mark.parametrize("stacked", [True, False], ids=["tensor", "list"])
def test_shared_are_weighted_and_heads_plain(way: str, given: bool, stacked: bool, update: str) -> None:
    model = Tasks()
    losses = model.losses()
    G = oracle_gramian(losses, model.shared)
    shared = manual(losses, WEIGHTS, model.shared)
    heads = [manual([loss], torch.ones(1), list(h.parameters())) for loss, h in zip(losses, model.heads, strict=True)]
    step = mtl_backward(
        torch.stack(losses) if stacked else losses,
        Constant(WEIGHTS),
        shared=model.shared if given else None,
        update=update,
    )
    assert relative_error(step.gramian, G) < 1e-12
    assert torch.equal(step.weights, WEIGHTS)
    assert_grads(model.shared, shared)
    for head, expected in zip(model.heads, heads, strict=True):
        assert_grads(list(head.parameters()), expected)
    assert all(p.grad is None for p in model.unused.parameters())


def test_upgrad_is_the_default() -> None:
    model = Tasks()
    losses = model.losses()
    weights = UPGrad()(oracle_gramian(losses, model.shared))
    step = mtl_backward(losses)
    torch.testing.assert_close(step.weights, weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("update", UPDATES)
def test_shared_given_narrower_than_what_is_shared(way: str, update: str) -> None:
    """The layer that two tasks share is not named: it gets the sum of their gradients."""
    model = Tasks()
    losses = model.losses()
    trunk, pair = list(model.trunk.parameters()), list(model.pair.parameters())
    G, expected = oracle_gramian(losses, trunk), manual(losses, WEIGHTS, trunk)
    plain = manual(losses, torch.ones(3, dtype=F64), pair)
    step = mtl_backward(losses, Constant(WEIGHTS), shared=trunk, update=update)
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads(trunk, expected)
    assert_grads(pair, plain)


@pytest.mark.parametrize("update", UPDATES)
def test_shared_may_be_features(way: str, update: str) -> None:
    """A tensor that is no leaf gets the combination; what it was computed from gets plain gradients."""
    below = torch.randn(6, 4, dtype=F64, requires_grad=True)
    features = below.tanh()
    heads = [nn.Linear(4, 1, dtype=F64) for _ in range(3)]
    losses = [head(features).square().mean() for head in heads]
    G, expected = oracle_gramian(losses, [features]), manual(losses, WEIGHTS, [features])
    plain = manual(losses, torch.ones(3, dtype=F64), [below])
    step = mtl_backward(losses, Constant(WEIGHTS), shared=[features], update=update)
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads([below, features], [*plain, *expected])


@pytest.mark.parametrize("update", UPDATES)
def test_accumulates(way: str, update: str) -> None:
    model = Tasks()
    losses = model.losses()
    everything = [p for p in model.parameters() if p not in set(model.unused.parameters())]
    mtl_backward(losses, Constant(WEIGHTS), retain_graph=True, update=update)
    once = [p.grad.clone() for p in everything]
    mtl_backward(losses, Constant(WEIGHTS), update=update)
    assert_grads(everything, [2 * g for g in once])


@pytest.mark.parametrize("update", UPDATES)
def test_frees_the_graph_unless_retained(way: str, update: str) -> None:
    losses = Tasks().losses()
    mtl_backward(losses, Mean(), retain_graph=True, update=update)
    mtl_backward(losses, Mean(), update=update)
    with pytest.raises(RuntimeError, match="second time"):
        mtl_backward(losses, Mean())


@pytest.mark.parametrize("update", UPDATES)
def test_one_task(way: str, update: str) -> None:
    """Nothing is shared with nobody: plain gradients everywhere and an empty Gramian."""
    model = mlp()
    leaves = list(model.parameters())
    loss = model(torch.randn(3, 5, dtype=F64)).square().mean()
    expected = manual([loss], torch.ones(1), leaves)
    step = mtl_backward([loss], Constant(torch.tensor([3.0], dtype=F64)), update=update)
    assert_grads(leaves, expected)
    assert torch.equal(step.gramian, torch.zeros(1, 1, dtype=F64))


def test_one_task_with_shared_given_is_weighted() -> None:
    model = mlp()
    loss = model(torch.randn(3, 5, dtype=F64)).square().mean()
    first = list(model[0].parameters())
    expected = manual([loss], torch.full((1,), 3.0), first)
    step = mtl_backward([loss], Constant(torch.tensor([3.0], dtype=F64)), shared=first)
    assert_grads(first, expected)
    assert step.gramian.item() > 0


@pytest.mark.parametrize("update", UPDATES)
def test_nothing_shared(way: str, update: str) -> None:
    models = [mlp(), mlp(), mlp()]
    losses = [model(torch.randn(3, 5, dtype=F64)).square().mean() for model in models]
    expected = [manual([x], torch.ones(1), list(m.parameters())) for x, m in zip(losses, models, strict=True)]
    step = mtl_backward(losses, Constant(WEIGHTS), update=update)
    for model, values in zip(models, expected, strict=True):
        assert_grads(list(model.parameters()), values)
    assert torch.equal(step.gramian, torch.zeros(3, 3, dtype=F64))


def test_everything_shared_is_gram_backward() -> None:
    p = torch.randn(4, dtype=F64, requires_grad=True)
    losses = [(p * k).sin().sum() for k in (1.0, 2.0, 3.0)]
    expected = gram_backward(losses, UPGrad(), retain_graph=True)
    (grad,) = (p.grad.clone(),)
    p.grad = None
    step = mtl_backward(losses, UPGrad())
    assert torch.equal(step.gramian, expected.gramian)
    assert torch.equal(p.grad, grad)


@pytest.mark.parametrize("update", UPDATES)
def test_shared_found_from_rows_not_from_names(way: str, update: str) -> None:
    """One stacked weight, of which each task reads its own slice, is still shared as a leaf."""
    table = torch.randn(3, 4, dtype=F64, requires_grad=True)
    own = torch.randn(4, dtype=F64, requires_grad=True)
    losses = [table[0].square().sum() * own.sum(), table[1].square().sum(), table[2].exp().sum()]
    expected = manual(losses, WEIGHTS, [table])
    plain = manual(losses[:1], torch.ones(1), [own])
    step = mtl_backward(losses, Constant(WEIGHTS), update=update)
    assert_grads([table], expected)
    assert_grads([own], plain)
    assert relative_error(step.gramian, oracle_gramian(losses_again(table, own), [table])) < 1e-12


def losses_again(table: Tensor, own: Tensor) -> list[Tensor]:
    return [table[0].square().sum() * own.sum(), table[1].square().sum(), table[2].exp().sum()]


@pytest.mark.parametrize(
    "shapes", [((2,), ()), ((), (3, 1)), ((1, 2), (1,))], ids=["vector first", "matrix second", "row first"]
)
def test_vector_entries_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    p = torch.randn(3, dtype=F64, requires_grad=True)
    losses = [p.sum().expand(shape).clone() for shape in shapes]
    with pytest.raises(LossError, match=r"one scalar loss.*gram_backward"):
        mtl_backward(losses)
    assert p.grad is None


def test_one_element_entries_of_any_shape_are_scalars() -> None:
    p = torch.randn(3, dtype=F64, requires_grad=True)
    step = mtl_backward([p.sum().view(1, 1), p.square().sum().view(1)], Constant(WEIGHTS[:2]))
    torch.testing.assert_close(p.grad, 0.5 - 2 * p.detach())
    assert step.weights.shape == (2,)


def test_shared_that_no_task_reaches() -> None:
    model = Tasks()
    losses = model.losses()
    with pytest.raises(InputError, match="not reached by any loss"):
        mtl_backward(losses, shared=[model.unused.weight])
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_aggregator_leaves_heads_alone() -> None:
    model = Tasks()
    with pytest.raises(ValueError, match="returned shape"):
        mtl_backward(model.losses(), lambda G: G.new_ones(5))
    assert all(p.grad is None for p in model.parameters())
