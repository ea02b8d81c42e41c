"""What a launch makes of real arguments: lengths of 1 become constants, mixed types are upcast, and it compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from gramjd.kernels.convolution import Window
from gramjd.kernels.triton import (
    chunks,
    common,
    convolution,
    cross,
    cross_chunks,
    cross_pairs,
    depthwise,
    norms,
    pairwise,
    segments,
    symmetric,
    weighted,
)

SHAPES = {
    "ones": (1, 1, 1, 1, 1, 1),
    "one sample": (1, 1, 1, 5, 1, 1),
    "odd": (2, 3, 5, 7, 11, 13),
    "round": (1, 1, 64, 1, 64, 64),
}


class NoDriver:
    """Stands for a Hopper GPU as far as compiling needs one."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were compiled instead of launched."""
    names: list[str] = []
    run = triton.runtime.JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        names.append(kernel.__name__)
        run(kernel, *arguments, warmup=True, **options)

    monkeypatch.setattr(triton.runtime.JITFunction, "run", compile_only)
    monkeypatch.setattr(common, "arch_of", lambda tensor: 90)
    driver.set_active(NoDriver())  # no way back is needed: without a GPU there is no driver
    return names


@pytest.mark.exhaustive
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu runs them")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_kernel(shape: tuple[int, ...], dtype: torch.dtype, launched: list[str]) -> None:
    """x of `dtype`, c of float32."""
    g, K, b, T, i, o = shape
    x, c = torch.randn(g, b, T, i).to(dtype), torch.randn(K, g, b, T, o)
    pairwise.pairwise(x, c, torch.float32)
    ids = torch.zeros(b, T, dtype=torch.long)
    pairwise.gathered(ids, c[:, 0], torch.float32)
    other = x[:, :1].float(), c[:, :, :1]
    cross_pairs.pairwise(x, c, *other, torch.float32)
    cross_pairs.gathered(ids, c[:, 0], ids[:1], c[:, 0, :1].to(dtype), torch.float32)
    cross_chunks.rows(x, c, *other, torch.float32)
    segments.pairwise(x[0].flatten(0, 1), c[:, 0].flatten(1, 2), torch.arange(b + 1)[None] * T, torch.float32)
    norms.pair(x[0], c[:, 0], torch.float32)
    chunks.rows(x, c, torch.float32)
    weighted.weighted_outer(x, c, torch.ones(K * b))
    symmetric.product(x[:, :, :1], c[:, :, :, :1], torch.float32)
    cross.product(x[:, :, :1], c[:, :, :, :1], x[:, :1, :1].float(), c[:, :, :1, :1], torch.float32)
    symmetric.gram_rows(x.reshape(-1, i), torch.float32)
    images = torch.randn(b, g * i, 3, T).to(dtype), torch.randn(K, b, g * o, 3, T)
    convolution.rows(*images, Window((3, 3), (1, 1), (1, 1), (1, 1), g), torch.float32)
    window = Window((1, 1), (1, 1), (0, 0), (1, 1), g)
    convolution.chunk_of_rows(
        *convolution._as_images(*images, window), convolution.config_for(90, b * g, K * o, i, 3 * T)
    )
    depthwise.chunk_of_rows(*convolution._as_images(*images, window))
    expected = {"pairs", "lengths", "weighted", "partial", "finish", "rectangle", "finish_rectangle"}
    expected |= {"gradients", "small_gradients", "cross_pairs", "segments"}
    assert set(launched) == expected | ({"chunks", "cross_chunks"} if K * b <= chunks.FEW_ROWS else set())
