"""A traced graph with fewer calls: the same memory under another name is one value, a chain of views is one view.

For a compiler nothing but dead code is left out: views cost it nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen

from gramjd.compiled import _compilers
from gramjd.engine import _torch
from gramjd.kernels.tracing import TraceError

aten = torch.ops.aten
# Another name for the same memory.
ALIASES = {aten.detach.default, aten.alias.default}
# Views that are defined by positions, whatever the strides: what they show can be told from shapes and strides of one
# run for all runs.
VIEWS = {
    aten.view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.permute.default,
    aten.t.default,
    aten.transpose.int,
    aten.select.int,
    aten.slice.Tensor,
}


def simplified(graph: fx.GraphModule, shorter: bool) -> fx.GraphModule:
    """The graph with plain inputs and outputs and without dead code; `shorter`: with fewer calls for the same."""
    graph.graph.set_codegen(CodeGen())
    for node in reversed(graph.graph.nodes):
        if str(node.target).startswith("profiler."):  # ranges of an optimizer's step, that a recording would show
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code(_has_effect)
    if not shorter:
        written = _written(graph)  # a compiler may choose other strides
        _reshape(node for node in graph.graph.nodes if node not in written)
    else:
        for node in list(graph.graph.nodes):
            _replace(node, _same(node))
        graph.graph.eliminate_dead_code(_has_effect)
    graph.recompile()
    return graph


def _has_effect(node: fx.Node) -> bool:
    """Returns True for what must be done although nothing uses its result.

    Batch norms write to running statistics without saying so; what is drawn moves the random numbers on.
    """
    drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return node.is_impure() or drawn or "batch_norm" in str(node.target)


def _replace(node: fx.Node, other: fx.Node | None) -> None:
    if other is not None:
        node.replace_all_uses_with(other)
        node.graph.erase_node(node)


def _same(node: fx.Node) -> fx.Node | None:
    """A node that gives the same memory in the same shape with fewer calls, if there is one."""
    if node.target in ALIASES:
        return _argument(node)
    if node.target is aten.lift_fresh_copy.default:
        return _argument(node) if all(_only_reads(user, node) for user in node.users) else None
    return _shorter(node) if node.target in VIEWS else None


def _argument(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node), "a view has what it is a view of"
    return first


def reshaped(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph for operations whose strides differ from those foretold: views may copy.

    Raises:
        TraceError: something writes to such a view, which would then not reach what it is a view of.
    """
    written = _written(graph)
    if any(node.target is aten.view.default for node in written):
        raise TraceError("writes to a view of a tensor whose strides are not those that PyTorch foretold")
    _reshape(graph.graph.nodes)
    graph.recompile()
    return graph


def _reshape(nodes: Iterable[fx.Node]) -> None:
    for node in nodes:
        if node.target in (aten.view.default, _compilers.unsafe_view):
            node.target = aten.reshape.default


def _written(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes that share memory with something that is written to."""
    roots: dict[fx.Node, fx.Node] = {}
    written: set[fx.Node] = set()
    for node in graph.graph.nodes:
        schema = _torch.schema_of(node.target)
        roots[node] = node
        if schema is None:
            continue
        given = {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)
        for argument in schema.arguments:
            value = given.get(argument.name)
            if argument.alias_info is None or not isinstance(value, fx.Node):
                continue
            roots[node] = roots[value]
            if argument.alias_info.is_write:
                written.add(roots[value])
    return {node for node, root in roots.items() if root in written}


def _only_reads(user: fx.Node, constant: fx.Node) -> bool:
    """Returns True if a call neither writes to a constant nor gives out a part of it."""
    schema = _torch.schema_of(user.target)
    if schema is None:
        return False
    given = [*user.args, *user.kwargs.values()]
    for argument, value in zip(schema.arguments, given, strict=False):
        if argument.alias_info is not None and constant in _nodes(value):
            return False
    return True


def _nodes(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _shorter(node: fx.Node) -> fx.Node | None:
    """A node of the chain that has the same shape and strides, or one view of the chain's begin."""
    mine = _geometry(node)
    chain = list(_chain(node))
    for earlier in reversed(chain):
        if _geometry(earlier) == mine:
            return earlier
    base = chain[-1]
    if len(chain) < 2 or not _contiguous(base) or _geometry(base)[2] != mine[2]:
        return None
    if _contiguous(node) and math.prod(mine[0]) == math.prod(_geometry(base)[0]):
        return _call(node, aten.view.default, base, list(_value(node).shape))
    order = _permutation(base, node)
    return None if order is None else _call(node, aten.permute.default, base, order)


def _call(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args)
    new.meta = dict(node.meta)
    return new


def _chain(node: fx.Node) -> Iterator[fx.Node]:
    """What the node is a view of, back to what is no view."""
    while node.target in VIEWS:
        node = _argument(node)
        yield node


def _value(node: fx.Node) -> torch.Tensor:
    found: torch.Tensor = node.meta["val"]
    return found


def _geometry(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides (0 for a size of 1) and offset."""
    value = _value(node)
    strides = tuple([0 if n == 1 else s for n, s in zip(value.shape, value.stride(), strict=True)])
    return tuple(value.shape), strides, int(value.storage_offset())


def _contiguous(node: fx.Node) -> bool:
    return _value(node).is_contiguous()


def _permutation(base: fx.Node, node: fx.Node) -> list[int] | None:
    """The order in which the node has the base's dimensions, if all sizes differ from 1 and none is left out."""
    (shape, strides, _), (mine, my_strides, _) = _geometry(base), _geometry(node)
    if len(shape) != len(mine) or 1 in shape or 0 in shape:
        return None
    place = {stride: d for d, stride in enumerate(strides)}
    order = [place.get(stride) for stride in my_strides]
    if None in order or len(set(order)) < len(order):
        return None
    found = [d for d in order if d is not None]
    return found if [shape[d] for d in found] == list(mine) else None
