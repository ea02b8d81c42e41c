"""The private interfaces of PyTorch that the engine relies on, each by name and by what it does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

import gramjd.engine
from gramjd.engine import _torch

LIBRARY = Path(gramjd.engine.__file__).parent.parent
# Attributes with an underscore that are no private interface of PyTorch: of this package, of classes that users
# derive (`torch.autograd.Function` has none), of the standard library.
OURS = re.compile(r"^(__\w+__|_asdict|_replace|_getframe|_fields)$")


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, a: Tensor, k: int) -> Tensor:
        return k * a

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, None]:
        return 2 * g, None


@pytest.fixture
def w() -> Tensor:
    return torch.tensor([1.0, 2.0], requires_grad=True)


def test_run_backward(w: Tensor) -> None:
    y = w.exp()
    edge = (GradientEdge(y.grad_fn, 0),)
    (found,) = _torch.run_backward(edge, (torch.ones(2),), edge, True)
    torch.testing.assert_close(found, torch.ones(2))
    assert _torch.run_backward((y,), (torch.ones(2),), (), True, accumulate=True) == ()
    torch.testing.assert_close(w.grad, y.detach())


def test_undefined_gradients(w: Tensor) -> None:
    end = _torch.undefined_gradients()(w.exp())
    end.sum().backward()
    assert w.grad is None


def test_outputs_and_order(w: Tensor) -> None:
    first, second = w.exp(), w.view(1, 2).unbind(1)
    (output,) = _torch.outputs_of(first.grad_fn)
    assert (tuple(output.shape), output.dtype, output.device.type) == ((2,), torch.float32, "cpu")
    assert not output.is_nested_tensor
    assert len(_torch.outputs_of(second[0].grad_fn)) == 2
    assert _torch.sequence_number(first.grad_fn) < _torch.sequence_number(second[0].grad_fn)


def test_custom_functions(w: Tensor) -> None:
    node = Twice.apply(w, 2).grad_fn
    assert _torch.is_python(node)
    assert not _torch.is_python(w.exp().grad_fn)
    assert _torch.run_python(node, [torch.ones(2)]) is not None
    assert tuple(_torch.needs_gradient(node)) == (True, False)


def test_saved_values(w: Tensor) -> None:
    node = w.exp().grad_fn
    assert _torch.has_saved(node, "result")
    assert not _torch.has_saved(node, "weight")
    torch.testing.assert_close(_torch.saved(node, "result"), w.exp())
    assert _torch.saved_names(type(node)) == ("result",)
    with pytest.raises(AttributeError):
        _torch.saved(node, "weight")


def test_hooks_of_saved_tensors(w: Tensor) -> None:
    assert not _torch.unpacks_by_hook(w.exp().grad_fn)
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        assert _torch.unpacks_by_hook(w.exp().grad_fn)


def test_hooks(w: Tensor) -> None:
    before = _torch.handles_made()
    assert not _torch.leaf_hooks(w)
    w.register_hook(lambda g: g)
    assert _torch.handles_made() == before + 1 == RemovableHandle.next_id
    assert len(_torch.leaf_hooks(w)) == 1
    assert list(_torch.accumulated_hooks(w)) == []
    hook = lambda leaf: None  # noqa: E731
    w.register_post_accumulate_grad_hook(hook)
    assert list(_torch.accumulated_hooks(w)) == [hook]


def test_hooks_of_nodes(w: Tensor) -> None:
    node, foreign = w.exp().grad_fn, _torch.foreign_handles()
    assert not _torch.has_own_hooks(node)
    assert _torch.foreign_handles() == foreign
    node.register_hook(lambda *_: None)
    assert _torch.has_own_hooks(node)


def test_hooks_of_outputs(w: Tensor) -> None:
    first, second = w.exp().unbind()
    for nr in (0, 1):
        seen: list[Tensor] = []
        registry = {0: seen.append}
        _torch.add_output_hooks(first.grad_fn, nr, registry)
        (first + 2 * second).backward(retain_graph=True)
        assert [float(g) for g in seen] == [1.0 + nr]
        registry.clear()


def test_tensors_and_the_process(w: Tensor) -> None:
    assert _torch.is_zero_tensor(torch._efficientzerotensor(2))
    assert not _torch.is_zero_tensor(w)
    assert _torch.storage_of(w) == _torch.storage_of(w.view(1, 2)) != _torch.storage_of(w.clone())
    assert not _torch.profiler_runs()
    with torch.autograd.profiler.profile():
        assert _torch.profiler_runs()


def test_leaves_are_what_they_are_called() -> None:
    layer = nn.Linear(2, 1)
    node = torch.autograd.graph.get_gradient_edge(layer.weight).node
    assert node.name() == gramjd.engine.graph.LEAF
    assert node.variable is layer.weight


@pytest.mark.parametrize("folder", ["engine", "aggregation"])
def test_there_is_one_door(folder: str) -> None:
    """No other file reads an attribute with an underscore of anything but of this package."""
    found = []
    for file in (LIBRARY / folder).rglob("*.py"):
        if file.name == "_torch.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not OURS.match(node.attr):
                owner = ast.unparse(node.value)
                if owner not in ("self", "other", "_torch", "torch.ops.aten", "aten", "cls") and not owner.endswith(
                    "self"
                ):
                    found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    allowed = [line for line in found if re.search(r": (_here|_last|_Probe|walk|kept|recorder|replay|_aten)\b", line)]
    assert sorted(set(found) - set(allowed)) == []
