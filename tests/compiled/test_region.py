"""A compiled model in an eager loop: its layers stay visible to a walk."""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import gramjd
from gramjd.compiled.region import backend
from gramjd.errors import FallbackWarning
from tests.oracle import oracle_gramian

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # which Dynamo looks at
]
compiled = partial(torch.compile, backend=partial(backend, compiler="aot_eager"))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def mlp(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(i, o), nn.Tanh(), nn.LayerNorm(o)) for i, o in pairwise(widths)]
    return nn.Sequential(*layers).double()


def regions(losses: Tensor) -> int:
    """How many nodes of compiled regions lie behind a loss."""
    seen, stack = set(), [losses.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [child for child, _ in node.next_functions]
    return sum(node.name() == "RegionBackward" for node in seen)


def check(make: Callable[[], Tensor], inputs: Sequence[Tensor], at_least: int = 1) -> None:
    """The Gramian, the norms and both updates of losses behind a region against the oracle and plain autograd."""
    losses = make()
    assert regions(losses) >= at_least
    expected = oracle_gramian(make(), inputs)
    torch.testing.assert_close(gramjd.gramian(make(), inputs), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gramjd.gradient_norms(make(), inputs), expected.diagonal().sqrt(), rtol=1e-9, atol=1e-12)
    for update in ("backward", "reuse"):
        for p in inputs:
            p.grad = None
        step = gramjd.gram_backward(make(), update=update, inputs=inputs)
        assert step is not None
        plain = make()
        gradients = torch.autograd.grad(plain.reshape(-1), inputs, step.weights.to(plain.dtype), allow_unused=True)
        for p, gradient in zip(inputs, gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)


def test_every_batch_size():
    net = mlp(6, 8, 8, 3)
    call = compiled(net)
    for m in (8, 5, 4, 8, 1):
        x, y = torch.randn(m, 6).double(), torch.randint(3, (m,))
        check(lambda x=x, y=y: cross_entropy(call(x), y, reduction="none"), list(net.parameters()))


def test_layers_below_and_above_and_between():
    below, inside, above, last = mlp(6, 8), mlp(8, 8, 8), mlp(8, 5), mlp(5, 3)
    first, second = compiled(inside), compiled(last)
    x, y = torch.randn(7, 6).double(), torch.randint(3, (7,))
    parameters = [p for part in (below, inside, above, last) for p in part.parameters()]
    check(lambda: cross_entropy(second(above(first(below(x)))), y, reduction="none"), parameters, 2)


def test_a_parameter_that_is_used_outside_as_well():
    net = mlp(6, 6, 6)
    call = compiled(net)
    x = torch.randn(7, 6).double()
    check(lambda: linear(call(x), net[0][0].weight).square().sum(1), list(net.parameters()))
    check(lambda: linear(call(call(x)), net[1][0].weight).square().sum(1), list(net.parameters()), 2)


class Heads(nn.Module):
    """Several outputs, of which one needs no gradient and one is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = mlp(6, 8), nn.Linear(8, 3).double(), nn.Linear(8, 2).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        h = self.trunk(x)
        return self.a(h), self.b(h), h.detach().argmax(1), len(x)


def test_several_outputs_and_tasks():
    net = Heads()
    call = compiled(net)
    x = torch.randn(7, 6).double()

    def losses() -> Tensor:
        a, b, where, n = call(x)
        assert not where.requires_grad
        return torch.stack([a.square().sum() / n, b.tanh().sum(), (a.sum(1) * b.prod(1)).mean()])

    check(losses, list(net.parameters()))
    check(lambda: call(x)[1].square().sum(1), [*net.trunk.parameters(), *net.b.parameters()])
    shared = list(net.trunk.parameters())
    a, b, *_ = call(x)
    gramjd.mtl_backward([a.square().sum(), b.tanh().sum()])
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in shared)


def test_losses_per_token_and_a_batch_that_comes_second():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=False).double()
    call = compiled(layer)
    x = torch.randn(4, 3, 8).double()  # [T, B, d]
    check(lambda: call(x).square().mean((0, 2)), list(layer.parameters()))
    check(lambda: call(x).square().mean(2).reshape(-1), list(layer.parameters()))


def test_what_cannot_be_made_twice_stays_as_it_is():
    parts = {"draws random numbers": nn.Dropout(0.5), "writes to one of its inputs": nn.BatchNorm1d(6).double()}
    for reason, part in parts.items():
        torch._dynamo.reset()
        net = nn.Sequential(nn.Linear(6, 6).double(), part)
        call = compiled(net)
        x = torch.randn(5, 6).double()
        with pytest.warns(FallbackWarning, match=f"runs uncompiled: it {reason}"):
            losses = call(x).square().sum(1)
        assert not regions(losses)
        with pytest.warns(gramjd.errors.DenseRowsWarning) if reason.startswith("writes") else _quiet():
            found = gramjd.gramian(losses)
        torch.testing.assert_close(found, oracle_gramian(losses, list(net.parameters())))
    net.eval()
    check(lambda: call(x).square().sum(1), list(net.parameters()))


def _quiet():
    return torch.enable_grad()


def test_an_input_that_is_handed_out_again():
    net = mlp(6, 6)
    call = compiled(lambda x: (net(x), x[:, :3]))
    with pytest.warns(FallbackWarning, match="returns a part of one of its inputs"):
        y, part = call(torch.randn(5, 6).double())
    assert not regions(y)
    assert part.shape == (5, 3)


def test_without_gradients_it_is_a_function():
    net = mlp(6, 3)
    call = compiled(net)
    x = torch.randn(5, 6).double()
    with torch.no_grad():
        assert call(x).grad_fn is None
    for p in net.parameters():
        p.requires_grad_(False)
    assert call(x).grad_fn is None
    net[0][0].weight.requires_grad_(True)
    check(lambda: call(x).square().sum(1), [net[0][0].weight])


def test_outputs_may_be_written_to_and_inputs_may_not():
    net = mlp(6, 6)
    call = compiled(net)
    x = torch.randn(5, 6).double()
    check(lambda: call(x).add_(1).square().sum(1), list(net.parameters()))
    losses = call(x).square().sum(1)
    with torch.no_grad():
        net[0][0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gramjd.gramian(losses)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_a_graph_is_freed_and_kept_as_autograd_does():
    net = mlp(6, 3)
    call = compiled(net)
    x = torch.randn(5, 6).double()
    losses = call(x).square().sum(1)
    first = gramjd.gram_backward(losses, retain_graph=True).gramian
    torch.testing.assert_close(gramjd.gram_backward(losses).gramian, first)
    with pytest.raises(Exception, match="a second time"):
        losses.sum().backward()


def test_a_gradient_may_be_differentiated_again():
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    call = compiled(net)
    points = torch.randn(5, 2).double()

    def residuals(call: Callable[[Tensor], Tensor]) -> Tensor:
        x = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(call(x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return (bend.sum(1) - slope[:, 0]).square()

    expected = oracle_gramian(residuals(net), list(net.parameters()))
    torch.testing.assert_close(gramjd.gramian(residuals(call), net), expected, rtol=1e-9, atol=1e-12)


def test_nothing_is_left_of_a_step():
    net = mlp(6, 3)
    call = compiled(net)
    x = torch.randn(5, 6).double()

    def alive() -> int:
        return sum(isinstance(one, Tensor) for one in gc.get_objects())

    def take() -> None:
        gramjd.gram_backward(call(x).square().sum(1))

    take()
    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(4):
            take()
            counts.append(alive())
        assert len(set(counts)) == 1, counts
    finally:
        gc.enable()


def test_under_autocast_the_layers_are_those_of_the_forward_pass():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    call = compiled(net)
    x, y = torch.randn(5, 6), torch.randint(3, (5,))

    def gramian(model: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            losses = cross_entropy(model(x), y, reduction="none")
        assert regions(losses) == (model is call)
        return gramjd.gramian(losses)

    torch.testing.assert_close(gramian(call), gramian(net), rtol=1e-6, atol=1e-7)


def test_torch_finds_it_by_name():
    assert "gramjd" in torch._dynamo.list_backends()
    assert torch._dynamo.lookup_backend("gramjd") is backend


@pytest.mark.slow
def test_compiled_by_inductor():
    net = mlp(6, 8, 8, 3)
    call = torch.compile(net, backend="gramjd")
    for m in (8, 5):
        x, y = torch.randn(m, 6).double(), torch.randint(3, (m,))
        check(lambda x=x, y=y: cross_entropy(call(x), y, reduction="none"), list(net.parameters()))


@pytest.mark.slow
def test_code_that_overwrites_what_it_saved_is_not_taken_from_a_cache():
    net = nn.Sequential(nn.Linear(6, 32), nn.ELU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.ELU(), nn.Linear(32, 3))
    x = torch.randn(8, 6)
    torch.compile(net)(x).square().sum().backward()  # for one backward pass
    torch._dynamo.reset()
    losses = torch.compile(net, backend="gramjd")(x).square().sum()
    expected = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for _ in range(2):
        torch.testing.assert_close(
            torch.autograd.grad(losses, list(net.parameters()), retain_graph=True), expected, rtol=1e-4, atol=1e-5
        )
