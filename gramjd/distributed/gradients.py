"""Updates: this rank's gradients, and their sums over ranks in a few flat buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gramjd.distributed.ranks import Ranks
from gramjd.distributed.side import Side
from gramjd.engine import dtensor
from gramjd.engine.autograd import add_to_grad, plainly, release
from gramjd.engine.consumers.update import Kept
from gramjd.engine.hooks import on_accumulation
from gramjd.errors import InputError

# Bytes of a buffer.
BUFFER = 8 << 20


def summed(ranks: Ranks, parameters: Sequence[Tensor], mine: dict[int, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with the sum over ranks of its gradient, buffer by buffer.

    Of one that is spread over a mesh as well, each rank of that sums its piece. `mine`: gradients of this rank by the
    id of the parameter, zero where there is none; each is taken out when it is used.
    """
    for buffer in _buffers(parameters):
        given = [_piece(p, mine.pop(id(p), None)) for p in buffer]
        shapes = [one.shape for one in given]
        flat = torch.cat([one.reshape(-1) for one in given])
        del given
        total = ranks.summed(flat)
        for p, part, shape in zip(buffer, total.split([shape.numel() for shape in shapes]), shapes, strict=True):
            yield p, dtensor.like(p, part.view(shape))


def _piece(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    found = dtensor.piece(parameter, torch.zeros_like(parameter) if gradient is None else gradient)
    return found if found.layout == torch.strided else found.to_dense()


def _buffers(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one type and device, so many that they fill a buffer."""
    found: list[Tensor] = []
    for p in parameters:
        full = sum(one.nbytes for one in found) + p.nbytes > BUFFER
        if found and (full or (found[0].dtype, found[0].device) != (p.dtype, p.device)):
            yield found
            found = []
        found.append(p)
    if found:
        yield found


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


def add_sums(ranks: Ranks, targets: Sequence[Tensor], mine: dict[int, Tensor], device: torch.device) -> None:
    """Add the sum over ranks to the `.grad` of the targets that some rank reaches. `mine` is used up."""
    ranks.meet()
    flags = torch.tensor([int(id(t) in mine) for t in targets], device=device)
    somewhere = ranks.summed(flags).tolist()
    used = [t for t, count in zip(targets, somewhere, strict=True) if count]
    add_to_grad(list(summed(ranks, used, mine)))  # all of them were received before one is written
