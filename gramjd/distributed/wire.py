"""A parameter's Jacobian as bytes: what is not a number is pickled, the tensors follow one another."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor

from gramjd.engine.parameter import Jacobian

# The length of the pickled part comes first, in so many bytes; tensors begin at multiples of the second.
PREFIX, ALIGNED = 8, 16


class Parcel:
    """A Jacobian to be sent: `nbytes` is known before it is put together.

    A pickled part, with its length in front of it; then the tensors, each at a multiple of `ALIGNED`.
    """

    def __init__(self, jacobian: Jacobian) -> None:
        self._tensors = [t.detach() for factor in jacobian.factors for t in factor.tensors]
        described = []
        for factor in jacobian.factors:
            bare = factor.with_tensors([torch.empty(0, dtype=t.dtype) for t in factor.tensors])
            described.append((bare, [(tuple(t.shape), t.dtype) for t in factor.tensors]))
        head = pickle.dumps((jacobian.shape, described))
        front = bytearray(len(head).to_bytes(PREFIX, "little") + head)
        self._front = torch.frombuffer(front, dtype=torch.uint8)
        sizes = [len(self._front), *(t.numel() * t.dtype.itemsize for t in self._tensors)]
        self.nbytes = sum(n + -n % ALIGNED for n in sizes)

    def pack(self, into: Tensor) -> None:
        """Write it into a vector of `nbytes` bytes."""
        at = 0
        for part in (self._front, *self._tensors):
            numel = part.numel() * part.dtype.itemsize
            into[at : at + numel].view(part.dtype).view(part.shape).copy_(part)
            at += numel + -numel % ALIGNED


def unpacked(parcel: Tensor, device: torch.device) -> Jacobian:
    """The Jacobian that a parcel holds."""
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
