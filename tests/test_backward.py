"""`gram_backward` is `losses.backward(weights)` with weights from the Gramian, and `gramian` leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import gramjd
from gramjd import Constant, Mean, UPGrad, gram_backward, gramian
from tests.oracle import flatten, oracle_gramian, relative_error
from tests.small import F32, F64, clear, cnn, encoder, grads, mlp, same, squares

WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=F64)


def fixed(weights: Tensor = WEIGHTS) -> Callable[[Tensor], Tensor]:
    """An aggregator of known weights."""
    return lambda G: weights.to(G.dtype)


def expected_grads(losses: Tensor | Sequence[Tensor], weights: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """`J^T w` by plain autograd; the graph stays usable."""
    total = sum(w * x for w, x in zip(weights, flatten(losses), strict=True))
    found = torch.autograd.grad(total, list(inputs), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def assert_grads(inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for tensor, value in zip(inputs, expected, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, value, rtol=1e-12, atol=1e-14)


MODELS = {
    "mlp": lambda: squares_of(mlp(), torch.randn(4, 5, dtype=F64)),
    "cnn": lambda: squares_of(cnn(), torch.randn(4, 2, 6, 6, dtype=F64)),
    "encoder": lambda: squares_of(encoder(), torch.randn(4, 3, 8, dtype=F64)),
}


def squares_of(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    return list(model.parameters()), model(x).square().flatten(1).sum(1)


@pytest.mark.parametrize("name", MODELS)
def test_adds_what_losses_backward_adds(name: str) -> None:
    leaves, losses = MODELS[name]()
    expected = expected_grads(losses, WEIGHTS, leaves)
    G = oracle_gramian(losses, leaves)
    step = gram_backward(losses, fixed())
    assert_grads(leaves, expected)
    assert torch.equal(step.weights, WEIGHTS)
    assert relative_error(step.gramian, G) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_bit_for_bit_a_plain_backward(name: str) -> None:
    leaves, losses = MODELS[name]()
    losses.backward(WEIGHTS, retain_graph=True)
    plain = grads(leaves)
    clear(leaves)
    gram_backward(losses, fixed())
    assert same(grads(leaves), plain)


def test_step_is_detached_and_unpacks() -> None:
    weights, G = gram_backward(squares(mlp()), Constant(WEIGHTS))
    assert not weights.requires_grad
    assert not G.requires_grad
    assert torch.equal(G, G.T)


def test_accumulates_into_an_existing_grad() -> None:
    model = mlp()
    losses = squares(model)
    leaves = list(model.parameters())
    before = [torch.randn_like(p) for p in leaves]
    for leaf, grad in zip(leaves, before, strict=True):
        leaf.grad = grad.clone()
    expected = [a + b for a, b in zip(before, expected_grads(losses, WEIGHTS, leaves), strict=True)]
    gram_backward(losses, fixed())
    assert_grads(leaves, expected)


def test_inputs_restrict_grad_and_gramian() -> None:
    model = mlp()
    losses = squares(model)
    chosen = [model[0].bias, model[2].weight]
    G, expected = oracle_gramian(losses, chosen), expected_grads(losses, WEIGHTS, chosen)
    step = gram_backward(losses, fixed(), inputs=chosen)
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads(chosen, expected)
    assert model[0].weight.grad is None
    assert model[2].bias.grad is None


def test_gramian_inputs_restrict_the_gramian_only() -> None:
    model = mlp()
    losses = squares(model)
    leaves = list(model.parameters())
    G, expected = oracle_gramian(losses, [model[2].weight]), expected_grads(losses, WEIGHTS, leaves)
    step = gram_backward(losses, fixed(), gramian_inputs=[model[2].weight])
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads(leaves, expected)


def test_gramian_inputs_and_inputs_may_differ() -> None:
    model = mlp()
    losses = squares(model)
    G, expected = oracle_gramian(losses, [model[2].weight]), expected_grads(losses, WEIGHTS, [model[0].weight])
    step = gram_backward(losses, fixed(), inputs=[model[0].weight], gramian_inputs=[model[2].weight])
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads([model[0].weight], expected)
    assert model[2].weight.grad is None


def test_upgrad_is_the_default_and_never_in_conflict() -> None:
    w = torch.tensor([1.0, 1.0], dtype=F64, requires_grad=True)
    losses = torch.stack([w[0], -w[0] + w[1]])
    step = gram_backward(losses, retain_graph=True)
    assert w.grad is not None
    moved = (
        torch.stack(torch.autograd.grad(losses[0], w, retain_graph=True) + torch.autograd.grad(losses[1], w)) @ w.grad
    )
    assert (moved >= -1e-12).all()
    torch.testing.assert_close(step.weights, UPGrad()(step.gramian), rtol=0, atol=0)
    assert not torch.allclose(step.weights, torch.full_like(step.weights, 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_another_float_dtype_are_cast(dtype: torch.dtype) -> None:
    model = mlp()
    losses = squares(model)
    leaves = list(model.parameters())
    expected = expected_grads(losses, WEIGHTS, leaves)
    step = gram_backward(losses, lambda G: WEIGHTS.to(dtype))
    assert step.weights.dtype == dtype
    assert_grads(leaves, expected)


def test_second_call_needs_retain_graph() -> None:
    model = mlp()
    losses = squares(model)
    gram_backward(losses, Mean())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gram_backward(losses, Mean())


def test_retain_graph_makes_a_second_call_equal_and_grads_add_up() -> None:
    model = mlp()
    losses = squares(model)
    leaves = list(model.parameters())
    expected = expected_grads(losses, WEIGHTS, leaves)
    first = gram_backward(losses, fixed(), retain_graph=True)
    assert_grads(leaves, expected)
    second = gram_backward(losses, fixed())
    assert torch.equal(first.gramian, second.gramian)
    assert_grads(leaves, [2 * g for g in expected])


def test_a_step_frees_the_graph_and_retain_graph_keeps_it() -> None:
    model = mlp()
    losses = squares(model)
    gram_backward(losses, Mean(), retain_graph=True)
    losses.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        losses.sum().backward()


def _scalars(p: Tensor) -> list[Tensor]:
    return [(p * k).sin().sum() for k in range(1, 5)]


SHAPES: dict[str, Callable[[Tensor], Tensor | list[Tensor]]] = {
    "list of scalars": _scalars,
    "tuple of scalars": lambda p: tuple(_scalars(p)),
    "matrix [2, 2]": lambda p: torch.stack(_scalars(p)).view(2, 2),
    "[1, 4, 1]": lambda p: torch.stack(_scalars(p)).view(1, 4, 1),
    "transposed [2, 2]": lambda p: torch.stack(_scalars(p)).view(2, 2).T,
    "mixed shapes": lambda p: [_scalars(p)[0], torch.stack(_scalars(p)[1:]).view(3, 1)],
    "with an empty one": lambda p: [torch.stack(_scalars(p)), p[:0, 0]],
    "views of one": lambda p: list(torch.stack(_scalars(p)).unbind()),
    "expanded": lambda p: _scalars(p)[2].expand(4),
    "the same one twice": lambda p: [torch.stack(_scalars(p)[:2])] * 2,
}


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("name", SHAPES)
def test_losses_of_any_shape(name: str) -> None:
    p = torch.randn(3, 2, dtype=F64, requires_grad=True)
    losses = SHAPES[name](p)
    G, (expected,) = oracle_gramian(losses, [p]), expected_grads(losses, WEIGHTS, [p])
    step = gram_backward(losses, fixed())
    assert step.gramian.shape == (4, 4)
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads([p], [expected])


def test_one_scalar_loss() -> None:
    p = torch.randn(3, dtype=F64, requires_grad=True)
    step = gram_backward(p.square().sum())
    torch.testing.assert_close(step.gramian, 4 * p.detach().square().sum().view(1, 1))
    assert_grads([p], [2 * p.detach() * step.weights])


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_a_loss_that_is_a_leaf(shape: tuple[int, ...]) -> None:
    leaf = torch.randn(shape, dtype=F64, requires_grad=True)
    m = leaf.numel()
    step = gram_backward(leaf, fixed(WEIGHTS[:m]))
    assert torch.equal(step.gramian, torch.eye(m, dtype=F64))
    assert_grads([leaf], [WEIGHTS[:m].view(shape)])


def test_a_leaf_beside_a_loss_computed_from_it() -> None:
    leaf = torch.tensor([2.0, 3.0], dtype=F64, requires_grad=True)
    losses = [leaf, leaf.square()]
    assert torch.equal(
        gramian(losses), torch.tensor([[1, 0, 4, 0], [0, 1, 0, 6], [4, 0, 16, 0], [0, 6, 0, 36.0]], dtype=F64)
    )


def test_non_leaf_inputs() -> None:
    model = mlp()
    x = torch.randn(4, 5, dtype=F64)
    hidden = model[1](model[0](x))
    losses = model[2](hidden).square().sum(1)
    G, expected = oracle_gramian(losses, [hidden]), expected_grads(losses, WEIGHTS, [hidden])
    assert relative_error(gramian(losses, [hidden]), G) < 1e-12
    hidden.retain_grad()
    step = gram_backward(losses, fixed(), inputs=[hidden])
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads([hidden], expected)
    assert all(p.grad is None for p in model.parameters())


def test_gramian_leaves_a_retained_grad_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    p = torch.randn(3, dtype=F64, requires_grad=True)
    hidden = p.exp()
    hidden.retain_grad()
    gramian(hidden.sin())
    assert hidden.grad is None


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
def test_gramian_leaves_a_retained_grad_alone_beside_hooks() -> None:
    p = torch.randn(3, dtype=F64, requires_grad=True)
    hidden, other = p.exp(), p.cos()
    hidden.retain_grad()
    other.register_hook(lambda g: g)
    gramian(hidden.sin() * other)
    assert hidden.grad is None


@pytest.mark.parametrize("update", ["backward", "reuse"])
def test_called_where_autocast_is_on(update: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Conv1d(16, 4, 1))
    for _ in range(3):
        model.zero_grad()
        losses = model[2](model[:2](torch.randn(6, 8)).unsqueeze(2)).square().sum((1, 2))
        expected = oracle_gramian(losses, list(model.parameters()))
        mean = torch.autograd.grad(losses.mean(), list(model.parameters()), retain_graph=True)
        with torch.autocast("cpu"):
            step = gram_backward(losses, gramjd.Mean(), update=update)
        assert relative_error(step.gramian.double(), expected.double()) < 1e-6
        if update == "reuse":
            torch.testing.assert_close([p.grad for p in model.parameters()], list(mean), rtol=1e-5, atol=1e-6)


def test_a_retained_grad_is_what_a_plain_backward_retains() -> None:
    p = torch.randn(4, dtype=F64, requires_grad=True)
    hidden = p.exp()
    losses = hidden.sin()
    expected = expected_grads(losses, WEIGHTS, [hidden])
    hidden.retain_grad()
    gram_backward(losses, fixed())
    assert_grads([hidden], expected)


def test_an_input_and_what_is_computed_from_it_both_count() -> None:
    p = torch.randn(3, dtype=F64, requires_grad=True)
    hidden = p.exp()
    losses = hidden * torch.arange(1, 4, dtype=F64)
    assert relative_error(gramian(losses, [p, hidden]), oracle_gramian(losses, [p, hidden])) < 1e-12


@pytest.mark.parametrize("form", ["tensor", "list", "generator", "mapping", "repeated"])
def test_forms_of_inputs(form: str) -> None:
    model = mlp()
    losses = squares(model)
    weight = model[0].weight
    both = [weight, model[2].weight]
    inputs = {
        "tensor": weight,
        "list": both,
        "generator": (p for p in both),
        "mapping": {"first": both[0], "second": both[1]},
        "repeated": [*both, weight, weight],
    }[form]
    reference = [weight] if form == "tensor" else both
    G, expected = oracle_gramian(losses, reference), expected_grads(losses, WEIGHTS, reference)
    step = gram_backward(losses, fixed(), inputs=inputs)
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads(reference, expected)


def test_the_parameters_method_of_a_module_is_an_input() -> None:
    model = mlp()
    losses = squares(model)
    step = gram_backward(losses, fixed(), inputs=model.parameters(), gramian_inputs=model[0].parameters())
    assert relative_error(step.gramian, oracle_gramian(squares_again(model), list(model[0].parameters()))) < 1e-12


def squares_again(model: nn.Module) -> Tensor:
    torch.manual_seed(0)
    mlp()
    return squares(model)


def test_gramian_leaves_grad_and_graph_alone() -> None:
    model = mlp()
    losses = squares(model)
    leaves = list(model.parameters())
    expected = expected_grads(losses, torch.ones(4, dtype=F64), leaves)
    first = gramian(losses)
    assert all(p.grad is None for p in leaves)
    assert torch.equal(first, gramian(losses))
    losses.sum().backward()
    assert_grads(leaves, expected)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)], ids=str
)
def test_small_floats_accumulate_in_float32(dtype: torch.dtype, limit: float) -> None:
    model = mlp(5, 64, 4, dtype=dtype)
    losses = squares(model, b=16, dtype=dtype)
    G = gramian(losses)
    assert G.dtype == F32
    assert relative_error(G, oracle_gramian(losses)) < limit
    wide = gramian(losses, dtype=F64)
    assert wide.dtype == F64
    assert relative_error(wide, G) < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_sums_of_small_floats_lose_nothing(dtype: torch.dtype) -> None:
    """2048 + 1 is 2048 in float16, and 256 + 1 is 256 in bfloat16."""
    p = torch.ones(8192, dtype=dtype, requires_grad=True)
    losses = torch.stack([p.view(2, -1)[0].mean() * 4096, (p * 2).mean() * 8192])
    assert torch.equal(gramian(losses), torch.tensor([[4096.0, 8192.0], [8192.0, 32768.0]]))


def test_two_graphs_interleaved() -> None:
    model = mlp()
    first, second = squares(model), squares(model)
    G1, G2 = oracle_gramian(first), oracle_gramian(second)
    leaves = list(model.parameters())
    expected = [a + b for a, b in zip(*(expected_grads(x, WEIGHTS, leaves) for x in (first, second)), strict=True)]
    assert relative_error(gramian(second), G2) < 1e-12
    assert relative_error(gram_backward(first, fixed()).gramian, G1) < 1e-12
    assert relative_error(gram_backward(second, fixed()).gramian, G2) < 1e-12
    assert_grads(leaves, expected)


def test_runs_under_no_grad_and_leaves_grad_mode() -> None:
    losses = squares(mlp())
    with torch.no_grad():
        gramjd.gram_backward(losses)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
