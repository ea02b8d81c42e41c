"""Products with a matrix per group, such as experts: one factor of all groups, with a row per loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gramjd.engine import layout as layouts
from gramjd.engine.factor import Outer
from gramjd.engine.layout import Layout, Owners, Shape
from gramjd.engine.node import NodeView, Operand, Send, SendFactor
from gramjd.engine.segments import Groups, by_group, of_groups


def make_outer(owners: Owners, shape: tuple[int, ...], name: str, flipped: bool, x: Tensor, c: Tensor) -> Outer:
    """A factor from its operands, which come last."""
    return Outer(owners, shape, name, x, c, flipped)


def groups_of(layout: Layout, shape: Shape, sizes: Sequence[int]) -> Groups:
    """Whose the rows of a cotangent of `shape` [P, o] are, of which `sizes` are each group's, one after another."""
    parts = layouts.along(layout, shape, 0)
    assert parts is not None, "made whole by the caller"
    return by_group(parts[2], np.repeat(np.arange(len(sizes)), sizes), len(sizes))


def factor_of_groups(
    node: NodeView,
    edge: int,
    groups: Groups,
    sizes: tuple[int, int],
    flipped: bool,
    load: Callable[[], tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> Send | SendFactor:
    """The factor of matrices [g, o, i] (`flipped`: [g, i, o]), of which `load` gives x [P, i] and c [K, P, o]."""
    o, i = sizes
    both = node.once(lambda: of_groups(groups, *load()))
    x = Operand((*groups.places.shape, i), dtype, lambda: both()[0])
    cs = Operand((1, *groups.places.shape, o), dtype, lambda: both()[1])
    shape = (len(groups.places), *((i, o) if flipped else (o, i)))
    build = partial(make_outer, groups.owners, shape if len(groups.places) > 1 else shape[1:], node.name, flipped)
    return node.send_factor(edge, groups.owners, build, x, cs)
