"""Updates summed over ranks: the gradients of all parameters in a few flat buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gramjd.distributed.ranks import Ranks

# Bytes of a buffer, as large as those of DistributedDataParallel.
BUFFER = 25 * 2**20


def summed(ranks: Ranks, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """For each parameter the sum over ranks of its gradient (None: zero)."""
    given = [
        torch.zeros_like(p) if g is None else (g.to_dense() if g.layout != torch.strided else g)
        for p, g in zip(parameters, gradients, strict=True)
    ]
    found: list[Tensor] = [torch.empty(0)] * len(given)
    for places in _buffers(given):
        total = ranks.summed(torch.cat([given[n].reshape(-1) for n in places]))
        for n, part in zip(places, total.split([given[n].numel() for n in places]), strict=True):
            found[n] = part.view(given[n].shape)
    return found


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
