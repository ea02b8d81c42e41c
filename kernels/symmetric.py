"""Symmetric rank-k updates: `G += J J^T` with little more than the upper half of the work.

Gram matrices are upper ones throughout: right on and above the diagonal, while below it there may stand any number.
They can be added up and multiplied by one another as they are, and `mirrored` makes the result whole, once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.kernels.products import add_product, library, product
from gramjd.kernels.tracing import square, whole


def block_size(rows: int, by: str | None = None) -> int:
    """Rows of a block: the fewer, the more is saved, down to where products become slow.

    `by`: the library of the products; default: the one in force.
    """
    unit = 64 if (by or library()) == "onednn" else 32
    return rows if rows < 2 * unit else unit if rows < 8 * unit else 2 * unit


def add_gram(G: Tensor, J: Tensor) -> None:
    """Add `J J^T` to the blocks of G [R, R] on and above the diagonal, for J [R, d]."""
    step = block_size(len(J))
    for lo in range(0, len(J), step):
        add_product(G[lo : lo + step, lo:], J[lo : lo + step], J[lo:].T)


def mirrored(G: Tensor) -> Tensor:
    """G with its upper half on both sides, symmetric to the last bit."""
    return torch.triu(G).add_(torch.triu(G, 1).T)


def gram(J: Tensor) -> Tensor:
    """`J J^T` [R, R], upper, for J [R, d]."""
    return product(J, J.T) if len(J) <= block_size(len(J)) else _in_blocks(J)


@whole("gram(Tensor J) -> Tensor", lambda J: square(J, J.dtype, 1, len(J)))
def _in_blocks(J: Tensor) -> Tensor:
    G = torch.zeros(len(J), len(J), dtype=J.dtype, device=J.device)
    add_gram(G, J)
    return G


def even(n: int, most: int) -> int:
    """The size of parts, of at most `most`, into which n falls evenly; at least 1.

    >>> even(100, 40)
    34
    """
    return max(1, -(-n // max(1, -(-n // max(1, most)))))
