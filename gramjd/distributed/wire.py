"""A parameter's Jacobian as bytes: what is not a number is pickled, the tensors follow one another."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from gramjd.engine.factor import Factor
from gramjd.engine.parameter import Jacobian

# The length of the pickled part comes first, in so many bytes; tensors begin at multiples of the second.
PREFIX, ALIGNED = 8, 16


def packed(jacobian: Jacobian) -> Tensor:
    """One vector of bytes that holds a Jacobian."""
    parts: list[Tensor] = []
    described = []
    for factor in jacobian.factors:
        tensors = [t.detach().contiguous() for t in factor.tensors]
        bare = factor.with_tensors([t.new_empty(0) for t in tensors])
        described.append((_cpu(bare), [(tuple(t.shape), t.dtype) for t in tensors]))
        parts += [t.reshape(-1).view(torch.uint8) for t in tensors]
    head = pickle.dumps((jacobian.shape, described))
    front = torch.frombuffer(bytearray(len(head).to_bytes(PREFIX, "little") + head), dtype=torch.uint8)
    device = parts[0].device if parts else front.device
    return torch.cat([_filled(part.to(device)) for part in (front, *parts)])


def _cpu(factor: Factor) -> Factor:
    return factor.to(torch.device("cpu"))


def _filled(part: Tensor) -> Tensor:
    missing = -len(part) % ALIGNED
    return torch.cat([part, part.new_zeros(missing)]) if missing else part


def unpacked(parcel: Tensor, device: torch.device) -> Jacobian:
    """The Jacobian that `packed` made bytes of."""
    length = int.from_bytes(bytes(parcel[:PREFIX].tolist()), "little")
    shape, described = pickle.loads(parcel[PREFIX : PREFIX + length].cpu().numpy().tobytes())  # of this group's ranks
    at = PREFIX + length + -(PREFIX + length) % ALIGNED
    parcel = parcel.to(device)
    factors = []
    for bare, sizes in described:
        tensors = []
        for size, dtype in sizes:
            nbytes = torch.Size(size).numel() * dtype.itemsize
            tensors.append(parcel[at : at + nbytes].view(dtype).view(size))
            at += nbytes + -nbytes % ALIGNED
        factors.append(bare.with_tensors(tensors))
    return Jacobian(shape, factors)


def size_of(jacobian: Jacobian) -> int:
    """Bytes of the tensors of a Jacobian."""
    return sum(t.nbytes for factor in jacobian.factors for t in factor.tensors)
