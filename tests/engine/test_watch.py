"""Watching a node: its operations are seen, none of them computes, and a checkpoint is read as it should be."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd.engine import autograd, node
from gramjd.engine.watch import watched
from tests.oracle import assert_close_gramian, oracle_gramian


def base(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True).clone()


def test_steps_and_results() -> None:
    x, y = base(4, 3), base(4)
    x[:, 1].mul_(y)
    seen = watched(x.grad_fn, x.shape, x.dtype)
    assert seen is not None
    names = [step.name for step in seen.steps]
    assert names.count("aten::mul") == 2
    assert names[-1] == "aten::copy_"
    part = seen.steps[names.index("aten::clone")].given[0]
    assert (part.shape, part.stride(), part.storage_offset()) == ((4,), (3,), 1)
    assert all(result is not None and result.is_meta for result in seen.results)
    assert [tuple(result.shape) for result in seen.results if result is not None] == [(4, 3), (4,)]


def test_saved_tensors_are_left_alone() -> None:
    x, y = base(4, 3), base(4)
    x[:, 1].mul_(y)
    (expected,) = torch.autograd.grad(x.sin().sum(), y, retain_graph=True)
    watched(x.grad_fn, x.shape, x.dtype)
    (found,) = torch.autograd.grad(x.sin().sum(), y)
    assert torch.equal(found, expected)


def test_what_cannot_be_told() -> None:
    x = base(4)
    assert watched(x.reshape(2, 2).grad_fn, (3,), x.dtype) is None


def test_a_checkpoint_is_recomputed_for_each_reading() -> None:
    runs = []
    layer = nn.Linear(3, 3, dtype=torch.float64)

    def segment(x: Tensor) -> Tensor:
        runs.append(len(runs))
        y = layer(x).clone()
        y[:, 1:].mul_(layer(x.cos())[:, 1:])
        return y

    losses = checkpoint(segment, torch.randn(4, 3, dtype=torch.float64), use_reentrant=False).square().sum(1)
    found = gramjd.gramian(losses)
    assert len(runs) == 3  # the forward pass, to look at the node, to call it
    assert_close_gramian(found, oracle_gramian(losses), 1e-12)


def test_a_copy_calls_no_node(monkeypatch) -> None:
    """In float32 and bfloat16 as well: nothing is compared."""
    called: list[str] = []

    def noted(handle, values):
        called.append(handle.name())
        return autograd.pull(handle, values)

    monkeypatch.setattr(node, "pull", noted)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        out, layer = torch.zeros(4, 3, 5, dtype=dtype), nn.Linear(2, 5, dtype=dtype)
        out[:, 1] = layer(torch.randn(4, 2, dtype=dtype))
        losses = out.square().flatten(1).sum(1)
        assert gramjd.explain(losses).dense == ()
        gramjd.gramian(losses)
    assert not {name for name in called if "Copy" in name}
