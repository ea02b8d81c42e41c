"""Looking for hooks: every one is found, and nodes that cannot have one are not asked."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import gramjd
from gramjd.engine import hooks
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
    monkeypatch.setattr(hooks, "_changes", lambda *_: pytest.fail("asked"))
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
