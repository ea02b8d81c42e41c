"""Updates: this rank's gradients, and their sums over ranks in a few flat buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gramjd.distributed.ranks import Ranks
from gramjd.distributed.side import Side
from gramjd.engine import dtensor
from gramjd.engine.autograd import add_to_grad, plainly, release
from gramjd.engine.consumers.update import Kept
from gramjd.engine.hooks import on_accumulation
from gramjd.errors import InputError

# Bytes of a buffer, as large as those of DistributedDataParallel.
BUFFER = 25 * 2**20


def summed(ranks: Ranks, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """For each parameter the sum over ranks of its gradient (None: zero).

    Of one that is spread over a mesh as well, each rank of that sums its piece.
    """
    given = [_piece(p, torch.zeros_like(p) if g is None else g) for p, g in zip(parameters, gradients, strict=True)]
    found: list[Tensor] = [torch.empty(0)] * len(given)
    for places in _buffers(given):
        total = ranks.summed(torch.cat([given[n].reshape(-1) for n in places]))
        for n, part in zip(places, total.split([given[n].numel() for n in places]), strict=True):
            found[n] = dtensor.like(parameters[n], part.view(given[n].shape))
    return found


def _piece(parameter: Tensor, gradient: Tensor) -> Tensor:
    found = dtensor.piece(parameter, gradient)
    return found if found.layout == torch.strided else found.to_dense()


def _buffers(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Places of tensors of one type and device, so many that they fill a buffer."""
    places: list[int] = []
    for n, tensor in enumerate(tensors):
        if places:
            first = tensors[places[0]]
            full = sum(tensors[k].nbytes for k in places) + tensor.nbytes > BUFFER
            if full or (first.dtype, first.device) != (tensor.dtype, tensor.device):
                yield places
                places = []
        places.append(n)
    if places:
        yield places


def gradients_of(
    side: Side, targets: Sequence[Tensor], weights: Tensor, kept: Kept | None, retain_graph: bool
) -> dict[int, Tensor]:
    """`J_r^T w_r` of this rank for those of the targets that its losses reach, by their ids."""
    graph = side.graph
    if graph is None:
        return {}
    if on_accumulation(graph):
        raise InputError(
            "a parameter has a hook on the accumulation of its gradient, which would see the sum of one rank: "
            "remove the hook, or pass a DistributedDataParallel wrapper as `inputs`"
        )
    found: dict[int, Tensor] = {}
    if kept is not None:
        with plainly():
            found = {id(leaf): gradient for leaf, gradient in kept.gradients(weights)}
    reached = {id(leaf) for leaf in graph.leaves.values()}
    rest = [t for t in targets if id(t) not in found and (id(t) in reached or not t.is_leaf)]
    if rest:
        parts = weights.split([loss.numel() for loss in side.losses])
        given = [w.to(loss.dtype).view(loss.shape) for w, loss in zip(parts, side.losses, strict=True)]
        more = torch.autograd.grad(side.losses, rest, given, retain_graph=retain_graph, allow_unused=True)
        found |= {id(t): g for t, g in zip(rest, more, strict=True) if g is not None}
    elif not retain_graph:
        release(graph, side.losses)
    return found


def add_sums(ranks: Ranks, targets: Sequence[Tensor], mine: Mapping[int, Tensor], device: torch.device) -> None:
    """Add the sum over ranks to the `.grad` of the targets that some rank reaches."""
    ranks.meet()
    flags = torch.tensor([int(id(t) in mine) for t in targets], device=device)
    somewhere = ranks.summed(flags).tolist()
    used = [t for t, count in zip(targets, somewhere, strict=True) if count]
    add_to_grad(zip(used, summed(ranks, used, [mine.get(id(t)) for t in used]), strict=True))
