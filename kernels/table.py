"""Which operations have a kernel, and where: the table that `dispatch` looks them up in."""

from __future__ import annotations

# (operation, device type) to "module:function", whose signature is that of the torch form.
TABLE: dict[tuple[str, str], str] = {
    ("outer.product", "cuda"): "gramjd.kernels.triton.symmetric:product",
    ("outer.pairwise", "cuda"): "gramjd.kernels.triton.pairwise:pairwise",
    ("outer.rows", "cuda"): "gramjd.kernels.triton.chunks:rows",
    ("cross.product", "cuda"): "gramjd.kernels.triton.cross:product",
    ("cross.pairwise", "cuda"): "gramjd.kernels.triton.cross_pairs:pairwise",
    ("cross.rows", "cuda"): "gramjd.kernels.triton.cross_chunks:rows",
    ("cross.gathered", "cuda"): "gramjd.kernels.triton.cross_pairs:gathered",
    ("norms.pair", "cuda"): "gramjd.kernels.triton.norms:pair",
    ("gathered.pairwise", "cuda"): "gramjd.kernels.triton.pairwise:gathered",
    ("segments.pairwise", "cuda"): "gramjd.kernels.triton.segments:pairwise",
    ("rows", "cuda"): "gramjd.kernels.triton.symmetric:gram_rows",
    ("convolution.rows", "cuda"): "gramjd.kernels.triton.convolution:rows",
    ("weighted.outer", "cuda"): "gramjd.kernels.triton.weighted:weighted_outer",
}


def operations() -> list[str]:
    """The names of the operations that have a kernel for some device."""
    return sorted({name for name, _ in TABLE})
