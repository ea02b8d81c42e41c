"""Checkpoints, hooks on saved tensors, edits of them: the gradients of a plain step, and how often a segment is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors, save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import gramjd
from gramjd.errors import GraphError
from tests.oracle import oracle_gramian, oracle_jacobian, relative_error
from tests.small import F64, clear


class Block(nn.Module):
    """Two layers with dropout that count their forward passes."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.calls = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def saves_products(context: object, operation: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    wanted = operation in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
    return CheckpointPolicy.MUST_SAVE if wanted else CheckpointPolicy.PREFER_RECOMPUTE


selective = partial(create_selective_checkpoint_contexts, saves_products)
Forward = Callable[[nn.ModuleList, Tensor], Tensor]


def each(blocks: nn.ModuleList, x: Tensor, **options: Any) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False, **options)
    return x


def nested(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    def outer(x: Tensor) -> Tensor:
        return checkpoint(blocks[1], blocks[0](x), use_reentrant=False)

    return checkpoint(outer, x, use_reentrant=False)


def edited(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """What the second block saved of its input is changed after it ran."""
    hidden = blocks[0](x)
    out = blocks[1](hidden)
    hidden.mul_(2)
    return out + hidden


@contextmanager
def no_early_stop() -> Iterator[None]:
    with set_checkpoint_early_stop(False):
        yield


def on_disk(folder: Path) -> saved_tensors_hooks:
    count = iter(range(10_000))

    def pack(t: Tensor) -> Path:
        path = folder / f"{next(count)}.pt"
        torch.save(t, path)
        return path

    return saved_tensors_hooks(pack, torch.load)


# Forward passes of each block in a plain step, apart from those of gramjd; None where there is one.
WAYS: dict[str, tuple[Forward, Callable[[Path], Any], bool]] = {
    "each block": (each, lambda _: nullcontext(), True),
    "no early stop": (each, lambda _: no_early_stop(), True),
    "sequential": (
        lambda blocks, x: checkpoint_sequential(list(blocks), 1, x, use_reentrant=False),
        lambda _: nullcontext(),
        False,
    ),
    "nested": (nested, lambda _: nullcontext(), False),
    "selective": (partial(each, context_fn=selective), lambda _: nullcontext(), False),
    "save on cpu": (lambda blocks, x: blocks[1](blocks[0](x)), lambda _: save_on_cpu(), False),
    "on disk": (lambda blocks, x: blocks[1](blocks[0](x)), on_disk, False),
    "edits allowed": (edited, lambda _: allow_mutation_on_saved_tensors(), False),
    "edits allowed, none made": (lambda b, x: b[1](b[0](x)), lambda _: allow_mutation_on_saved_tensors(), False),
}


def plain(blocks: nn.ModuleList, x: Tensor, way: str) -> Tensor:
    hidden = blocks[0](x)
    out = blocks[1](hidden)
    return out + 2 * hidden if way == "edits allowed" else out


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("update", ["backward", "reuse"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_a_plain_step(way: str, update: str, dropout: float, tmp_path: Path) -> None:
    forward, context, counted = WAYS[way]
    blocks = nn.ModuleList(Block(dropout) for _ in range(2)).to(F64)
    x = torch.randn(4, 5, dtype=F64)
    parameters = list(blocks.parameters())
    torch.manual_seed(1)
    losses = plain(blocks, x, way).square().sum(1)
    G, J = oracle_gramian(losses, parameters), oracle_jacobian(losses, parameters)
    clear(parameters)
    for block in blocks:
        block.calls = 0
    torch.manual_seed(1)
    with context(tmp_path):
        step = gramjd.gram_backward(forward(blocks, x).square().sum(1), gramjd.MGDA(), update=update)
    assert relative_error(step.gramian, G) < 1e-12
    for p, rows in zip(parameters, J, strict=True):
        torch.testing.assert_close(p.grad, torch.tensordot(step.weights, rows, 1))
    if counted:  # once in the forward pass, once for each pass through the graph
        assert [block.calls for block in blocks] == [2 + (update == "backward")] * 2


def test_a_selective_checkpoint_is_gone_through_once() -> None:
    blocks = nn.ModuleList(Block() for _ in range(2))
    gramjd.gram_backward(each(blocks, torch.randn(4, 5), context_fn=selective).square().sum(1))
    assert [block.calls for block in blocks] == [2, 2]


def test_where_a_selective_checkpoint_needs_a_second_pass_it_says_so() -> None:
    blocks = nn.ModuleList(Block() for _ in range(2))
    losses = each(blocks, torch.randn(4, 5), context_fn=selective).square().sum(1)
    with pytest.raises(GraphError, match=r"can be gone through once.*checkpoint without a policy"):
        gramjd.gram_backward(losses, memory_budget=100)  # for the rows, but not for what would be kept
    assert all(p.grad is None for p in blocks.parameters())


def test_unpacking_is_once_for_each_pass() -> None:
    counts = {}
    for update in ("backward", "reuse"):
        blocks, calls = nn.ModuleList(Block() for _ in range(2)), []
        with saved_tensors_hooks(lambda t: t, lambda t, calls=calls: calls.append(1) or t):
            losses = blocks[1](blocks[0](torch.randn(4, 5))).square().sum(1)
        losses.sum().backward(retain_graph=True)
        once = len(calls)
        calls.clear()
        gramjd.gram_backward(losses, update=update)
        counts[update] = (len(calls), once)
    assert counts["backward"][0] <= 2 * counts["backward"][1]
    assert counts["reuse"][0] <= counts["reuse"][1]
