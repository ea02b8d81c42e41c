"""Random shapes, dtypes and memory layouts for kernels, and constants of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels.cost import Constants
from gramjd.kernels.devices import ENTRIES

DTYPES = {
    torch.float64: (torch.float64, 1e-13),
    torch.float32: (torch.float32, 2e-6),
    torch.bfloat16: (torch.float32, 2e-6),
    torch.float16: (torch.float32, 2e-6),
}
MEMORY = ("contiguous", "transposed", "sliced", "offset", "expanded")
sizes = st.integers(1, 5)
dtypes = st.sampled_from(list(DTYPES))
memory = st.sampled_from(MEMORY)
seeds = st.integers(0, 2**20)
# The entry of devices.json for the CPU that measured results are of, and the one for CPUs that were not measured.
CPU, UNKNOWN = (ENTRIES[place].devices["cpu"]["float32"] for place in (0, -1))
# Nothing costs but multiply-adds, of which one takes a second.
IDEAL = Constants(flops=2.0, half=0.0, elements=math.inf, call=0.0)


def tensor(shape: Sequence[int], dtype: torch.dtype, how: str, seed: int) -> Tensor:
    """Random numbers of `shape`; memory around and between them is NaN, so that a wrong stride shows."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    if how == "transposed":
        axes = list(range(len(shape)))[::-1]
        return values.permute(axes).contiguous().permute(axes)
    if how == "sliced":
        wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), float("nan"), dtype=dtype)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if how == "offset":
        wide = torch.full(tuple(n + 2 for n in shape), float("nan"), dtype=dtype)
        inner = wide[tuple(slice(1, n + 1) for n in shape)]
        return inner.copy_(values)
    if how == "expanded":
        return values[..., :1, :].expand(shape)
    return values


def error(got: Tensor, expected: Tensor, sizes: Tensor | None = None) -> float:
    """Frobenius error over the norm of `sizes`: what `expected` would be if nothing cancelled (default: itself)."""
    scale = (expected if sizes is None else sizes).norm().item()
    return (got.double() - expected).norm().item() / (scale if scale > 0 else 1.0)


def countable(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`products.add_product` as PyTorch's counter of operations sees it."""
    out.add_(a @ b)
