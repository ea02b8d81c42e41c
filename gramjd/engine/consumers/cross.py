"""The rectangle `J J'^T` of two vectors of losses: the rows of the first are kept until those of the second come."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gramjd.engine.cotangent import index_tensor
from gramjd.engine.factor import Factor
from gramjd.engine.given import GivenRows
from gramjd.engine.graph import Edge, Graph
from gramjd.engine.isometry import separate
from gramjd.engine.layout import Owners
from gramjd.engine.parameter import Jacobian
from gramjd.kernels.products import product


class Rectangle:
    """`J J'^T` [m, m']: `keep` gets the parameters of one side, `meet` those of the other."""

    def __init__(self, sides: tuple[Graph, Graph], counts: tuple[int, int], device: torch.device, dtype: torch.dtype):
        self.value = torch.zeros(counts, dtype=dtype, device=device)
        self._sides = sides
        self._held: dict[int, Jacobian] = {}

    def keep(self, edge: Edge, jacobian: Jacobian) -> None:
        """A parameter of the first side."""
        self._held[id(self._sides[0].targets[edge])] = jacobian

    def meet(self, edge: Edge, jacobian: Jacobian) -> None:
        """A parameter of the second side."""
        kept = self._held.pop(id(self._sides[1].targets[edge]), None)
        if kept is None:
            return
        add_products(self.value, kept, jacobian)


def add_products(value: Tensor, mine: Jacobian, theirs: Jacobian) -> None:
    """`value += J J'^T`, [m, m'], for two Jacobians of one parameter."""
    for f, h in itertools.product(mine.factors, theirs.factors):
        block = _inner(f, h, mine.shape, value.dtype)
        if block is not None:
            _add(value, _owners(f), _owners(h), block)


def _add(value: Tensor, owners: Owners, columns: Owners, block: Tensor) -> None:
    """`value[owners, columns] += block`; -1 is no loss."""
    live = [index_tensor((side >= 0).nonzero()[0], block.device) for side in (owners, columns)]
    place = [index_tensor(side[side >= 0], value.device) for side in (owners, columns)]
    block = block.index_select(0, live[0]).index_select(1, live[1]).to(device=value.device, dtype=value.dtype)
    value.index_put_((place[0][:, None], place[1][None, :]), block, accumulate=True)


def _owners(factor: Factor) -> Owners:
    return factor.dense.owners if isinstance(factor, GivenRows) else factor.owners


def _inner(f: Factor, h: Factor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Inner products of the rows of two factors; None if they lie in different parts of the parameter."""
    if isinstance(f, GivenRows) or isinstance(h, GivenRows):
        return product(_flat(f, dtype), _flat(h, dtype).T)
    f, h = f.upright(shape), h.upright(shape)
    regions = [f.region(shape), h.region(shape)]
    if regions[0] is None or regions[0] != regions[1] or f.shape != h.shape:
        if separate(regions) and regions[0] != regions[1]:
            return None
        return product(_flat(f, dtype), _flat(h, dtype).T)
    return f.cross(h, dtype)


def _flat(factor: Factor, dtype: torch.dtype) -> Tensor:
    rows = factor.dense.materialise() if isinstance(factor, GivenRows) else factor.materialise(dtype)
    real = torch.view_as_real(rows) if rows.is_complex() else rows
    return real.reshape(len(rows), -1).to(dtype)
