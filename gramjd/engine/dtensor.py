"""Tensor-parallel models: parts of a graph whose tensors are `DTensor`s, spread over the ranks of a mesh.

There cotangents are DTensors as well, whose operations mean what they mean for whole tensors. Between such parts stand
plain tensors, alike on all ranks or a piece on each, and nodes at the borders say which. At a parameter each rank keeps
the columns of the Jacobian that it is to count: those of its piece of the parameter, or of one that it is given where
all ranks hold the whole. So the Gramian is the sum over the ranks of the mesh of what each one counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gramjd.engine._torch import is_spread
from gramjd.engine.factor import Factor, Outer
from gramjd.engine.given import GivenRows
from gramjd.engine.isometry import TRANSPOSED
from gramjd.engine.layout import dense
from gramjd.engine.parameter import Jacobian
from gramjd.errors import GraphError


def mesh_of(tensors: Sequence[Tensor]) -> Any:
    """The mesh of those that are spread, None where none is. Raises GraphError for several."""
    found = {id(t.device_mesh): t.device_mesh for t in tensors if is_spread(t)}  # type: ignore[attr-defined]
    different = list(dict.fromkeys(found.values()))
    if len(different) > 1:
        raise GraphError(f"parameters are spread over different meshes, {different[0]} and {different[1]}: use one")
    return different[0] if different else None


def stacked(placements: Sequence[Any]) -> list[Any]:
    """Placements of a tensor as those of rows of it: one dimension further back; whole where sums are pending."""
    from torch.distributed.tensor import Replicate, Shard

    found: list[Any] = []
    for one in placements:
        if type(one) is Shard:
            found.append(Shard(one.dim + 1))
        elif one.is_replicate() or one.is_partial():
            found.append(Replicate())
        else:
            raise GraphError(f"a tensor is spread as {one}, which a walk cannot follow: use Shard or Replicate")
    return found


def spread(values: Tensor, mesh: Any, placements: Sequence[Any], shape: Sequence[int]) -> Tensor:
    """Rows [K, *], a piece on each rank, as rows [K, *shape] of whole tensors placed so."""
    from torch.distributed.tensor import DTensor

    whole = torch.Size((len(values), *shape))
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(
        values.contiguous(), mesh, stacked(placements), run_check=False, shape=whole, stride=stride
    )


def placed(values: Any, mesh: Any, placements: Sequence[Any]) -> Any:
    """Rows of whole tensors, placed so."""
    return values.redistribute(mesh, stacked(placements))


def first_of(mesh: Any) -> bool:
    """Returns True for the one rank of a mesh that counts what all of them hold."""
    return not any(mesh.get_coordinate())


def summed(total: Tensor, mesh: Any) -> Tensor:
    """The sum over the ranks of a mesh."""
    for group in mesh.get_all_groups():
        torch.distributed.all_reduce(total, group=group)
    return total


def alike(values: Tensor, mesh: Any) -> Tensor:
    """What the first rank of a mesh has."""
    values = values.clone(memory_format=torch.contiguous_format)  # an aggregator may keep what it returned
    for group in mesh.get_all_groups():
        torch.distributed.broadcast(values, torch.distributed.get_global_rank(group, 0), group=group)
    return values


def piece(parameter: Any, gradient: Any) -> Tensor:
    """This rank's piece of a gradient, cut as its parameter is; a plain one as it is."""
    found: Tensor = gradient
    if is_spread(gradient):
        found = gradient.redistribute(parameter.device_mesh, parameter.placements).to_local()
    return found


def like(parameter: Any, local: Tensor) -> Tensor:
    """A piece that is cut as a parameter is, as a tensor of its kind."""
    if not is_spread(parameter):
        return local
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


# -- at a parameter ---------------------------------------------------------------------------------------------------


def counted(jacobian: Jacobian, parameter: Tensor, mesh: Any) -> Jacobian:
    """The columns of a parameter's Jacobian that this rank counts, as plain tensors."""
    if is_spread(parameter) and all(_can_be_cut(factor) for factor in jacobian.factors):
        cut, shape = _columns(parameter), counted_shape(parameter)
        if not math.prod(shape):
            return Jacobian(shape)
        return Jacobian(shape, [_piece(factor, mesh, cut, shape) for factor in jacobian.factors])
    whole = [f.with_tensors([_whole(t) for t in f.tensors]) for f in jacobian.factors]
    return Jacobian(jacobian.shape, whole if first_of(mesh) else [])


def counted_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of this rank's columns of a parameter's Jacobian, where they are cut."""
    shape = list(parameter.shape)
    if not is_spread(parameter):
        return tuple(shape)
    mesh = parameter.device_mesh
    for one, count, at in zip(_columns(parameter), mesh.shape, mesh.get_coordinate(), strict=True):
        width = -(-shape[one.dim] // count)  # as torch.chunk cuts
        shape[one.dim] = max(0, min(width, shape[one.dim] - width * at))
    return tuple(shape)


def _columns(parameter: Any) -> list[Any]:
    """How the columns are dealt out: as the parameter is, and what all ranks hold along its first dimension."""
    from torch.distributed.tensor import Shard

    return [one if one.is_shard() else Shard(0) for one in parameter.placements]


def _whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor
    return found


def _can_be_cut(factor: Factor) -> bool:
    if not all(is_spread(t) for t in factor.tensors):
        return False
    if isinstance(factor, GivenRows):
        return bool(factor.shape) and not factor.layout.diagonal
    return isinstance(factor, Outer) and len(factor.shape) == 2 and all(s == TRANSPOSED for s in factor.chain)


def _piece(factor: Factor, mesh: Any, cut: Sequence[Any], shape: tuple[int, ...]) -> Factor:
    """A factor with those columns of the parameter that are left of it: `shape`."""
    if isinstance(factor, GivenRows):
        values = placed(factor.values, mesh, cut).to_local()
        return replace(factor, shape=shape, values=values, layout=dense(factor.owners, math.prod(shape)))
    assert isinstance(factor, Outer), "nothing else is cut"
    from torch.distributed.tensor import Replicate, Shard

    turned = len(factor.chain) % 2 == 1
    # The dimension of the parameter that x's columns run along.
    inward = 1 - (factor.flipped != turned)
    x = [Shard(3) if one.dim == inward else Replicate() for one in cut]
    c = [Replicate() if one.dim == inward else Shard(4) for one in cut]
    local = [t.redistribute(mesh, p).to_local() for t, p in ((factor.x, x), (factor.c, c))]  # type: ignore[attr-defined]
    return replace(factor, shape=shape[::-1] if turned else shape, x=local[0], c=local[1])
