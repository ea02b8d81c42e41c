"""`mtl_backward` by a walk and by passes: what is shared, hooks, options, and how many passes are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from gramjd import Constant, mtl_backward
from gramjd.engine import tasks
from gramjd.engine.choice import only
from gramjd.errors import BudgetError, InputError
from gramjd.kernels.dispatch import current_backend
from tests.oracle import oracle_gramian, relative_error
from tests.small import F64
from tests.test_mtl import UPDATES, WEIGHTS, Tasks, assert_grads, manual


@pytest.fixture(params=["walk", "passes"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with only(request.param):
        yield request.param


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    "weighed", [lambda losses: torch.stack(losses) * WEIGHTS, lambda losses: torch.stack(losses).flip(0)]
)
def test_what_is_done_to_stacked_losses_makes_no_head_shared(
    way: str, update: str, weighed: Callable[[list[Tensor]], Tensor]
) -> None:
    model = Tasks()
    losses = weighed(model.losses())
    expected = manual(losses.unbind(), WEIGHTS, model.shared)
    heads = list(model.heads.parameters())
    plain = manual(losses.unbind(), torch.ones(3, dtype=F64), heads)
    step = mtl_backward(losses, Constant(WEIGHTS), update=update)
    assert step.gramian.shape == (3, 3)
    assert_grads(model.shared, expected)
    assert_grads(heads, plain)


@pytest.mark.parametrize("update", UPDATES)
def test_who_shares_what_may_differ_between_steps_of_one_structure(way: str, update: str) -> None:
    """Two experts and losses that are picked from both: numbers in the graph say which expert a loss belongs to."""
    experts = [nn.Linear(3, 2, dtype=F64) for _ in range(2)]
    x = torch.randn(4, 3, dtype=F64)
    for picked in ([0, 1], [0, 0], [1, 1], [1, 0]):
        both = torch.stack([expert(x).square().mean() for expert in experts])
        losses = [both[k] for k in picked]
        w = WEIGHTS[:2]
        for expert in experts:
            expert.zero_grad()
        joint = [list(experts[k].parameters()) for k in set(picked)] if len(set(picked)) == 1 else []
        expected = [manual(losses, w, given) for given in joint]
        G = oracle_gramian(losses, joint[0]) if joint else torch.zeros(2, 2, dtype=F64)
        apart = [list(e.parameters()) for k, e in enumerate(experts) if len(set(picked)) == 2 or k not in picked]
        plain = [manual(losses, torch.ones(2), given) for given in apart]
        step = mtl_backward(losses, Constant(w), update=update)
        torch.testing.assert_close(step.gramian, G)
        for given, values in zip([*joint, *apart], [*expected, *plain], strict=True):
            for leaf, value in zip(given, values, strict=True):
                grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                torch.testing.assert_close(grad, value)


@pytest.mark.parametrize("hooked", ["trunk", "head", "activation", "accumulation"])
def test_hooks_see_what_they_see_in_a_backward_pass(way: str, hooked: str) -> None:
    model, seen = Tasks(), []
    if hooked == "accumulation":
        model.heads[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    elif hooked != "activation":
        leaf = model.trunk[0].weight if hooked == "trunk" else model.heads[1].weight
        leaf.register_hook(lambda g: 2 * g)
    else:
        model.trunk.register_forward_hook(lambda module, x, out: out.register_hook(lambda g: 2 * g) and None)
    state = torch.get_rng_state()
    grads = []
    for update in UPDATES:
        torch.set_rng_state(state)
        model.zero_grad()
        mtl_backward(model.losses(), Constant(WEIGHTS), update=update)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert len(seen) == (2 if hooked == "accumulation" else 0)


@pytest.mark.parametrize("update", UPDATES)
def test_a_budget_without_room_for_rows_is_walked_in_blocks(update: str) -> None:
    model = Tasks()
    losses = model.losses()
    expected = manual(losses, WEIGHTS, model.shared)
    G = oracle_gramian(losses, model.shared)
    with only("passes"):
        step = mtl_backward(losses, Constant(WEIGHTS), memory_budget=4000, update=update)
    assert relative_error(step.gramian, G) < 1e-12
    assert_grads(model.shared, expected)


def test_a_budget_that_is_too_small_changes_nothing(way: str) -> None:
    model = Tasks()
    with pytest.raises(BudgetError, match="raise it to at least"):
        mtl_backward(model.losses(), memory_budget=1)
    assert all(p.grad is None for p in model.parameters())


def test_the_backend_is_in_force(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = tasks.Tasks.gramian
    monkeypatch.setattr(
        tasks.Tasks, "gramian", lambda self, *given: (seen.append(current_backend()), original(self, *given))[1]
    )
    mtl_backward(Tasks().losses(), backend="torch")
    assert seen == ["torch"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"update": "forward"}, "update is 'forward'; expected one of 'backward', 'reuse'"),
        ({"memory_budget": 1.5}, "memory_budget is 1.5"),
        ({"backend": "cuda"}, "backend 'cuda' is not known"),
    ],
)
def test_options_are_checked(options: dict[str, object], said: str) -> None:
    model = Tasks()
    with pytest.raises(InputError, match=re.escape(said)):
        mtl_backward(model.losses(), **options)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("put", [list, torch.stack], ids=["list", "stacked"])
def test_what_is_shared_is_found_once_per_structure(
    way: str, put: Callable[[list[Tensor]], Tensor | list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later steps of a training plan nothing."""
    model = Tasks()
    for _ in range(2):
        mtl_backward(put(model.losses()))
    monkeypatch.setattr(tasks.compute, "plan", None)
    mtl_backward(put(model.losses()))


def test_gradients_of_two_leaves_are_two_tensors(way: str) -> None:
    """An addition sends one tensor to both of its operands."""
    trunk = torch.randn(3, dtype=F64, requires_grad=True)
    pairs = [[torch.randn(3, dtype=F64, requires_grad=True) for _ in range(2)] for _ in range(2)]
    data = torch.randn(3, dtype=F64)
    losses = [((a + b) * data).sum() + trunk.square().sum() * k for k, (a, b) in enumerate(pairs, 1)]
    mtl_backward(losses, update="reuse")
    for a, b in pairs:
        a.grad.mul_(2)
        torch.testing.assert_close(b.grad, data)
        torch.testing.assert_close(a.grad, 2 * data)


@pytest.mark.parametrize("update", UPDATES)
def test_reuse_needs_no_backward_pass(way: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = Tasks(), []
    original = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (passes.append(1), original(*a, **k))[1])
    mtl_backward(model.losses(), update=update)
    expected = {("walk", "reuse"): 1, ("passes", "reuse"): 0}.get((way, update), 2)
    assert len(passes) == expected
