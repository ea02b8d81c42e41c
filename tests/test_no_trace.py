"""After a call nothing is left: no hook, no state, and the graph dies with the losses, without a garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd import Mean, gram_backward, gramian
from gramjd.errors import AggregatorError
from gramjd.profiling.memory import peak_bytes
from tests.small import cnn, encoder, mlp, squares

Call = Callable[[Tensor], object]
CALLS: dict[str, Call] = {
    "gramian": gramian,
    "gram_backward": lambda losses: gram_backward(losses, Mean()),
    "explain": gramjd.explain,
    "mtl_backward": lambda losses: gramjd.mtl_backward(losses, Mean()),
}


class Watched(torch.autograd.Function):
    """The identity; its node holds a tensor that a weak reference can follow."""

    watched: weakref.ref[Tensor]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.held = torch.ones(3)
        Watched.watched = weakref.ref(ctx.held)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


class Block(nn.Module):
    """Two linear layers around the watched identity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Watched.apply(self.first(x).tanh()).tanh())


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("name", CALLS)
def test_graph_dies_with_the_losses(name: str) -> None:
    losses = squares(Block(), dtype=torch.float32)
    CALLS[name](losses)
    assert Watched.watched() is not None
    del losses
    assert Watched.watched() is None


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
def test_graph_dies_after_an_error() -> None:
    losses = squares(Block(), dtype=torch.float32)
    with pytest.raises(AggregatorError):
        gram_backward(losses, lambda G: G)
    del losses
    assert Watched.watched() is None


MODELS: dict[str, Callable[[], Tensor]] = {
    "mlp": lambda: squares(mlp()),
    "cnn": lambda: cnn()(torch.randn(4, 2, 6, 6, dtype=torch.float64)).square().sum(1),
    "encoder": lambda: encoder()(torch.randn(4, 3, 8, dtype=torch.float64)).square().sum((1, 2)),
}


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CALLS)
def test_makes_no_reference_cycles(name: str, model: str) -> None:
    losses = MODELS[model]()
    CALLS[name](losses)
    gc.collect()
    losses = MODELS[model]()
    gc.collect()
    CALLS[name](losses)
    del losses
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        left = {type(thing).__name__ for thing in gc.garbage if type(thing).__module__.startswith("gramjd")}
        tensors = sum(isinstance(thing, Tensor) for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    # Layouts remember each other: a few integers, which may wait for the collector.
    assert (left - {"Layout", "Piece"}, tensors) == (set(), 0)


@pytest.mark.usefixtures("_no_collector")
def test_saved_tensors_are_freed_by_the_step() -> None:
    model = mlp(64, 64, 64)
    x = torch.randn(256, 64, dtype=torch.float64)

    def forward_twice() -> None:
        losses = model(x).square().sum(1)
        gram_backward(losses, Mean())
        losses = model(x).square().sum(1)
        gram_backward(losses, Mean())

    def forward_once() -> None:
        gram_backward(model(x).square().sum(1), Mean())

    # From the third step of a structure on, steps are alike.
    for _ in range(3):
        forward_once()
    assert peak_bytes(forward_twice) <= 1.05 * peak_bytes(forward_once)


def hook_count(losses: Tensor) -> int:
    """Hooks registered on the nodes of a graph and on the leaves."""
    count, stack, seen = 0, [losses.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for register in (node.register_hook, node.register_prehook):
            handle = register(lambda *_: None)
            count += len(handle.hooks_dict_ref()) - 1
            handle.remove()
        if hasattr(node, "variable"):
            count += len(node.variable._backward_hooks or {})
        stack += [child for child, _ in node.next_functions]
    return count


@pytest.mark.parametrize("call", [gramian, gramjd.explain])
def test_leaves_no_hooks(call: Call) -> None:
    losses = squares(mlp())
    assert hook_count(losses) == 0
    call(losses)
    assert hook_count(losses) == 0


def test_hooks_of_the_user_stay_and_run_once_a_pass() -> None:
    model = mlp()
    calls: list[Tensor] = []
    handle = model[0].weight.register_hook(calls.append)
    losses = squares(model)
    losses.sum().backward(retain_graph=True)
    assert len(calls) == 1
    gram_backward(losses, Mean())
    handle.remove()
    torch.testing.assert_close(calls[-1], model[0].weight.grad - calls[0])


def test_values_of_parameters_and_data_are_not_changed() -> None:
    model = mlp()
    x = torch.randn(4, 5, dtype=torch.float64)
    before = [t.clone() for t in (*model.parameters(), x)]
    versions = [t._version for t in (*model.parameters(), x)]
    gram_backward(model(x).square().sum(1))
    assert all(torch.equal(a, b) for a, b in zip(before, (*model.parameters(), x), strict=True))
    assert versions == [t._version for t in (*model.parameters(), x)]


def test_random_state_is_not_advanced() -> None:
    losses = squares(mlp())
    before = torch.get_rng_state()
    gram_backward(losses)
    assert torch.equal(before, torch.get_rng_state())
