"""Looking for hooks: every one is found, and nodes that cannot have one are not asked."""

import gc
import sys
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import gramjd
from gramjd.engine import _torch, compute, hooks
from tests.oracle import leaves, oracle_gramian

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


def losses(p: Tensor, factor: float | None = None) -> Tensor:
    hidden = p.exp()
    if factor is not None:
        hidden.register_hook(lambda g: factor * g)
    return hidden.sin()


def assert_right(L: Tensor) -> None:
    torch.testing.assert_close(gramjd.gramian(L).double(), oracle_gramian(L, leaves(L)), rtol=1e-5, atol=1e-6)


@pytest.fixture
def p() -> Tensor:
    return torch.randn(3, requires_grad=True)


def test_where_no_hook_was_ever_registered_no_node_is_asked(p: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    monkeypatch.setattr(_torch, "_own_handles", 0)
    monkeypatch.setattr(hooks, "_search", lambda *_: pytest.fail("searched"))
    for _ in range(3):
        assert_right(losses(p))
        gramjd.gram_backward(losses(p), update="reuse")
    assert RemovableHandle.next_id == 0


def test_a_hook_that_is_older_than_the_last_walk(p: Tensor) -> None:
    first, second = losses(p, 3.0), losses(p)
    assert_right(second)
    assert_right(first)


def test_a_hook_between_walks_on_an_older_graph(p: Tensor) -> None:
    hidden = p.exp()
    assert_right(losses(p))
    hidden.register_hook(lambda g: 2 * g)
    assert_right(losses(p))
    assert_right(hidden.sin())


def test_a_hook_in_a_part_that_is_used_again_and_again(p: Tensor) -> None:
    hidden = p.exp()
    hidden.register_hook(lambda g: 2 * g)
    for _ in range(3):
        assert_right(hidden.sin())


def test_hooks_in_the_forward_pass_of_every_step(p: Tensor) -> None:
    for n in range(4):
        assert_right(losses(p, 2.0 + n))
        assert_right(losses(p))


def test_a_hook_on_a_leaf_that_stays(p: Tensor) -> None:
    p.register_hook(lambda g: 2 * g)
    for _ in range(3):
        assert_right(losses(p))


def test_a_hook_on_a_node(p: Tensor) -> None:
    for _ in range(3):
        L = losses(p)
        assert L.grad_fn is not None
        L.grad_fn.register_prehook(lambda g: (3 * g[0],))
        assert_right(L)


def test_a_graph_from_another_thread(p: Tensor) -> None:
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(losses(p, 5.0)))
    thread.start()
    thread.join()
    assert_right(losses(p))
    assert_right(made[0])


def test_hooks_on_accumulation_see_the_update() -> None:
    model, seen = nn.Linear(3, 2), []
    node = torch.autograd.graph.get_gradient_edge(model.weight).node
    node.register_prehook(lambda g: (3 * g[0],))
    node.register_hook(lambda *_: seen.append(1))
    data = torch.randn(4, 3)
    for _ in range(3):
        found = []
        for update in ("backward", "reuse"):
            model.zero_grad()
            gramjd.gram_backward(model(data).square().sum(1), gramjd.Mean(), update=update)
            found.append([q.grad.clone() for q in model.parameters() if q.grad is not None])
        torch.testing.assert_close(*found)
    assert len(seen) == 6


# -- hooks are found by their presence --------------------------------------------------------------------------------


def clipped(g: Tensor) -> Tensor | None:
    return g / g.norm() if g.norm() > 1 else None


class Clip:
    def __call__(self, g: Tensor) -> Tensor | None:
        return clipped(g)

    def bound(self, g: Tensor) -> Tensor | None:
        return clipped(g)


def scaled_by(factor: float, g: Tensor) -> Tensor | None:
    return factor * g if bool(g.any()) else None


CONDITIONAL = {
    "none for small gradients": clipped,
    "the argument for small gradients": lambda g: g / g.norm() if g.norm() > 1 else g,
    "repairs what is not finite": lambda g: None if torch.isfinite(g).all() and not g.any() else 3 * g,
    "an object": Clip(),
    "a bound method": Clip().bound,
    "a partial": partial(scaled_by, 2.0),
    "a mask of what is there": lambda g: g * (g.abs() > 1),
    "written in C": partial(torch.mul, other=torch.tensor(2.0)),
    "written in C, in place": partial(torch.Tensor.clamp_, max=0.5),
}


@pytest.mark.parametrize("hook", CONDITIONAL.values(), ids=list(CONDITIONAL))
@pytest.mark.parametrize("place", ["middle", "end", "second output"])
def test_hooks_that_leave_zeros_alone(hook: Callable[[Tensor], Tensor | None], place: str) -> None:
    """The rows are those that PyTorch gives, one backward pass per loss."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double(), torch.randn(5, 3).double()
    hidden = net[1](net[0](x))
    first, second = net[2](hidden).chunk(2, 1)
    L = 10 * first.square().sum(1) + 3 * second.sin().sum(1)
    {"middle": hidden, "end": L, "second output": second}[place].register_hook(hook)
    expected = oracle_gramian(L, leaves(L))
    torch.testing.assert_close(gramjd.gramian(L), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("hook", [clipped, lambda g: g.abs()], ids=["clipped", "absolute"])
def test_hooks_see_the_whole_gradient_of_a_loss(hook: Callable[[Tensor], Tensor | None]) -> None:
    """Each loss owns a column of a product, and by another path the other column: two rows, to be added up first."""
    torch.manual_seed(0)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    hidden = w.exp()
    y = hidden @ torch.randn(3, 2, dtype=torch.float64)
    L = y.sin().sum(0) + 2 * y.cos().flip(1).sum(0)
    hidden.register_hook(hook)
    torch.testing.assert_close(gramjd.gramian(L), oracle_gramian(L, leaves(L)), rtol=1e-12, atol=0)


def test_no_hook_is_run_by_the_search() -> None:
    """Hooks of an unsharded user may count, write files or talk to other processes."""
    calls: list[Tensor] = []
    w = torch.randn(4, requires_grad=True)
    hidden = w.exp()
    hidden.register_hook(lambda g: calls.append(g))
    found = compute.read([hidden.sin()], None).hooks
    assert found.edges == {(hidden.grad_fn, 0)}
    assert calls == []


def test_a_retained_gradient_is_not_written(p: Tensor) -> None:
    """Neither by the search nor by the rows of a hook on the same tensor."""
    hidden = p.exp()
    hidden.retain_grad()
    hidden.register_hook(lambda g: 2 * g)
    L = hidden.sin()
    gramjd.gramian(L)
    assert hidden.grad is None
    gramjd.gram_backward(L, gramjd.Sum())
    torch.testing.assert_close(hidden.grad, 2 * p.exp().cos().detach())


def test_a_hook_elsewhere_is_searched_for_once(p: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward hook of some module must not make every step search its graph."""
    nn.Linear(1, 1).register_forward_hook(lambda *_: None)
    searches: list[int] = []
    search = hooks._search
    monkeypatch.setattr(hooks, "_search", lambda *given: (searches.append(1), search(*given)))
    for _ in range(5):
        assert_right(losses(p))
        gramjd.gram_backward(losses(p), gramjd.Sum(), update="reuse")
    assert len(searches) == 1
    assert_right(losses(p, 2.0))
    assert len(searches) == 2


def test_tracing_and_collecting_go_on_as_before(p: Tensor) -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert_right(losses(p, 2.0))
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert gc.isenabled()


def test_searches_of_several_threads_keep_the_collector_off() -> None:
    """One that ends does not set it on for another; it is on again after the last."""
    assert gc.isenabled()
    with hooks._uncollected:
        with hooks._uncollected:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with hooks._uncollected:
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_callbacks_of_the_collector_are_no_hooks(p: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are called wherever it begins, also in the middle of a search."""
    called = []

    def callback(phase: str, info: dict[str, int]) -> None:
        called.append(phase)

    L = losses(p, 3.0)
    monkeypatch.setattr(gc, "disable", lambda: gc.set_threshold(1))
    monkeypatch.setattr(gc, "enable", lambda: gc.set_threshold(700, 10, 10))
    gc.callbacks.append(callback)
    try:
        assert_right(L)
        assert_right(losses(p))
    finally:
        gc.callbacks.remove(callback)
        gc.set_threshold(700, 10, 10)
    assert called
