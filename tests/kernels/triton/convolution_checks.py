"""What the kernel for convolutions must do, by Triton's interpreter and on a GPU, as in `checks.py`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gramjd.kernels import convolution as torch_form
from gramjd.kernels import dispatch
from gramjd.kernels.triton import convolution, depthwise
from gramjd.kernels.triton.common import Config
from tests.kernels.strategies import MEMORY, error, memory, seeds, tensor
from tests.kernels.test_convolution import definition, window
from tests.kernels.test_patches import CASES, Conv, convolutions, reference_rows
from tests.kernels.triton.checks import DEVICE, DTYPES, check_gram, dtypes, few, guarded, make

TINY = {"BLOCK_O": 16, "BLOCK_Q": 16, "BLOCK_P": 16}
IMAGES = {name: conv for name, conv in CASES.items() if len(conv.kernel) < 3}


def operands(conv: Conv, K: int, b: int, dtype: torch.dtype, how: tuple[str, str], seed: int) -> tuple[Tensor, Tensor]:
    x = make((b, conv.groups * conv.i, *conv.spatial), dtype, how[0], seed)
    return x, make((K, b, conv.groups * conv.o, *conv.out), dtype, how[1], seed + 1)


def check(
    conv: Conv,
    K: int,
    b: int,
    dtype: torch.dtype = torch.float32,
    how: tuple[str, str] = ("contiguous", "contiguous"),
    seed: int = 0,
    config: Config | None = None,
) -> None:
    x, c = operands(conv, K, b, dtype, how, seed)
    expected, scale = (definition(conv, *pair) for pair in ((x.cpu(), c.cpu()), (x.abs().cpu(), c.abs().cpu())))
    check_gram(lambda: convolution.rows(x, c, window(conv), torch.float32, config), expected, scale, DTYPES[dtype])


@given(convolutions(), st.integers(1, 2), st.integers(1, 3), dtypes, st.tuples(memory, memory), seeds)
@few
def test_any_convolution(conv: Conv, K: int, b: int, dtype: torch.dtype, how: tuple[str, str], seed: int) -> None:
    assume(len(conv.kernel) < 3)
    check(conv, K, b, dtype, how, seed, Config(TINY, 4, 2, splits=1 + seed % 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("conv", IMAGES.values(), ids=IMAGES)
def test_kinds(conv: Conv, dtype: torch.dtype) -> None:
    """Stride, padding, dilation, groups, depthwise and signals; NaN lies around the operands."""
    check(conv, 2, 3, dtype, ("offset", "offset"))


@pytest.mark.parametrize("how", MEMORY)
def test_layouts(how: str) -> None:
    check(IMAGES["grouped"], 2, 3, torch.float32, (how, how))


# More outputs, columns and pixels than one tile holds, in sums of one part and of more parts than there are blocks.
LARGE = {
    "plain": (Conv((9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 5, 19), 1),
    "stacked": (Conv((9, 7), (3, 3), (2, 1), (1, 1), (1, 2), 1, 3, 11), 3),
    "grouped": (Conv((7, 7), (3, 3), (1, 1), (1, 1), (1, 1), 3, 2, 17), 2),
    "depthwise": (Conv((7, 7), (5, 5), (1, 1), (2, 2), (1, 1), 5, 1, 2), 1),
    "signal": (Conv((67,), (7,), (2,), (3,), (1,), 1, 3, 17), 2),
}


@pytest.mark.parametrize("splits", [1, 7])
@pytest.mark.parametrize("name", LARGE)
def test_convolutions_larger_than_a_tile(name: str, splits: int) -> None:
    conv, K = LARGE[name]
    check(conv, K, 2, torch.float32, ("offset", "sliced"), 1, Config(TINY, 4, 2, splits))


@pytest.mark.parametrize("most", [300, 2000])
@pytest.mark.parametrize("name", LARGE)
def test_chunks(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into groups, outputs and inputs, the chunks add up to the same."""
    conv, K = LARGE[name]
    monkeypatch.setattr(convolution, "GPU_CHUNK", most)
    monkeypatch.setattr(convolution, "SIDE", 1)
    check(conv, K, 2)


@pytest.mark.parametrize("name", LARGE)
def test_a_chunk_is_the_rows(name: str) -> None:
    """J itself, not only its Gram matrix: [K b, groups o i q], written nowhere else."""
    conv, K = LARGE[name]
    x, c = operands(conv, K, 2, torch.float32, ("offset", "offset"), 0)
    images = convolution._as_images(x, c, window(conv))
    with guarded():
        J = convolution.chunk_of_rows(*images)
    expected = reference_rows(conv, x.cpu(), c.cpu()).reshape(2 * K, -1)
    assert error(J.cpu(), expected) < 2e-6


# Groups of a few outputs and inputs: more groups, numbers and pixels than a program takes at a time, and fewer.
SMALL = {
    "depthwise": (Conv((9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 11, 1, 1), 2),
    "strided": (Conv((9, 8), (3, 3), (2, 1), (1, 1), (1, 1), 5, 1, 1), 1),
    "dilated": (Conv((9, 8), (3, 2), (1, 2), (2, 0), (2, 1), 5, 1, 1), 1),
    "two outputs": (Conv((7, 7), (3, 3), (1, 1), (1, 1), (1, 1), 3, 1, 2), 2),
    "two inputs": (Conv((7, 7), (3, 3), (1, 1), (1, 1), (1, 1), 3, 2, 1), 1),
    "signal": (Conv((37,), (5,), (1,), (2,), (1,), 6, 1, 1), 2),
    "one group": (Conv((5, 6), (3, 3), (1, 1), (0, 0), (1, 1), 1, 1, 1), 1),
}


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("name", SMALL)
def test_small_groups(name: str, splits: int) -> None:
    """J itself, written nowhere else, and not by tiles of products."""
    conv, K = SMALL[name]
    assert depthwise.suits(K * conv.o, conv.i * math.prod(conv.kernel))
    x, c = operands(conv, K, 2, torch.float32, ("offset", "sliced"), 0)
    images = convolution._as_images(x, c, window(conv))
    config = Config({"GROUPS": 4, "BLOCK_P": 32}, 4, 2, splits)
    with guarded():
        J = depthwise.chunk_of_rows(*images, config)
    assert torch.equal(J, depthwise.chunk_of_rows(*images, config))
    assert error(J.cpu(), reference_rows(conv, x.cpu(), c.cpu()).reshape(2 * K, -1)) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", MEMORY)
def test_small_groups_in_any_layout(how: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "gradients", None)
    conv = Conv((5, 4), (3, 2), (1, 1), (1, 1), (1, 1), 3, 1, 1)
    check(conv, 1, 2, dtype, (how, "transposed"))
    check(conv, 2, 2, dtype, ("offset", how))


def test_small_groups_of_two_types() -> None:
    x, c = operands(SMALL["depthwise"][0], 1, 2, torch.float32, ("offset", "offset"), 0)
    x = x.half()
    J = depthwise.chunk_of_rows(*convolution._as_images(x, c, window(SMALL["depthwise"][0])))
    assert error(J.cpu(), reference_rows(SMALL["depthwise"][0], x.cpu(), c.cpu()).reshape(2, -1)) < 2e-6


@given(st.integers(1, 3000), st.integers(1, 1000), st.integers(1, 64), st.integers(1, 20_000))
def test_small_groups_are_hardly_padded(groups: int, samples: int, numbers: int, pixels: int) -> None:
    config = depthwise.config_for(90, groups, samples, numbers, pixels)
    step, block = config.constants["GROUPS"], config.constants["BLOCK_P"]
    assert step * block <= depthwise.ELEMENTS
    assert -(-pixels // block) * block <= max(1.15 * pixels, pixels + 15)
    assert step < 2 * groups
    assert 1 <= config.splits <= numbers


@given(st.tuples(*[st.integers(1, 70)] * 3), st.integers(1, 300), st.sampled_from([1, 9, 49]), st.integers(1, 1 << 20))
def test_chunks_are_bounded_and_cover(sizes: tuple[int, int, int], R: int, q: int, most: int) -> None:
    groups, i, o = sizes
    x, c = torch.empty(R, groups, i, 1, 1, device="meta"), torch.empty(1, R, groups, o, 1, 1, device="meta")
    covered = 0
    for inputs, outputs in convolution.chunks(x, c, q, most):
        part = inputs.shape[1] * inputs.shape[2] * outputs.shape[3] * q
        covered += part
        small = inputs.shape[2] <= -(-convolution.SIDE // q) and outputs.shape[3] <= convolution.SIDE
        assert R * part <= most or (inputs.shape[1] == 1 and small)
    assert covered == groups * i * o * q


def test_types_of_image_and_cotangent_differ() -> None:
    conv = IMAGES["grouped"]
    x, c = operands(conv, 2, 3, torch.float32, ("offset", "offset"), 0)
    x = x.bfloat16()
    expected, scale = (definition(conv, *pair) for pair in ((x.cpu(), c.cpu()), (x.abs().cpu(), c.abs().cpu())))
    check_gram(lambda: convolution.rows(x, c, window(conv), torch.float32), expected, scale, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_result_is_of_the_type_asked_for(dtype: torch.dtype) -> None:
    conv = IMAGES["depthwise"]
    x, c = operands(conv, 1, 3, dtype, ("contiguous", "contiguous"), 0)
    got = convolution.rows(x, c, window(conv), dtype)
    assert got.dtype == dtype
    assert error(got.cpu(), definition(conv, x.cpu(), c.cpu())) < max(2e-6, torch.finfo(dtype).eps)


def test_three_dimensions_take_the_torch_route() -> None:
    conv = CASES["three dimensions"]
    x, c = operands(conv, 2, 3, torch.float32, ("offset", "offset"), 0)
    got = convolution.rows(x, c, window(conv), torch.float32)
    assert error(got.cpu(), definition(conv, x.cpu(), c.cpu())) < 2e-6


@pytest.mark.parametrize("empty", ["b", "K", "i", "o"])
def test_convolution_sizes_of_zero(empty: str) -> None:
    K, b, i, o = (0 if name == empty else 2 for name in ("K", "b", "i", "o"))
    x, c = torch.randn(b, i, 4, 4, device=DEVICE), torch.randn(K, b, o, 4, 4, device=DEVICE)
    got = convolution.rows(x, c, torch_form.Window((3, 3), (1, 1), (1, 1), (1, 1), 1), torch.float32)
    assert torch.equal(got.cpu(), torch.zeros(K * b, K * b))


def test_not_finite_shows_in_images() -> None:
    """A NaN in one sample's input reaches every entry of its row, and no other row."""
    conv = IMAGES["1x1"]
    x, c = operands(conv, 1, 5, torch.float32, ("contiguous", "contiguous"), 0)
    x[2, 1, 0, 0] = float("nan")
    G = convolution.rows(x, c, window(conv), torch.float32).cpu()
    bad = torch.arange(5) == 2
    assert torch.equal(G.isnan(), bad[:, None] | bad[None, :])


def test_what_no_kernel_position_covers_is_not_read() -> None:
    """Strides leave the last two lines out; blocks of pixels that end beyond the last one must do so, too."""
    conv = Conv((8, 3), (3, 3), (3, 1), (0, 0), (1, 1), 1, 2, 2)
    x, c = operands(conv, 1, 3, torch.float32, ("contiguous", "contiguous"), 0)
    x[..., 6:, :] = float("nan")
    assert convolution.rows(x, c, window(conv), torch.float32).isfinite().all()


@pytest.mark.parametrize("stacked", ["cotangent", "input"])
def test_by_the_table(stacked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the walk asks for it; stacked inputs, of a transposed convolution, arrive as samples of one row each."""
    conv = Conv((9, 8), (3, 3), (1, 1), (1, 1), (1, 1), 2, 3, 5)
    monkeypatch.setitem(dispatch.TABLE, ("convolution.rows", DEVICE), dispatch.TABLE["convolution.rows", "cuda"])
    monkeypatch.setattr(torch_form, "route", lambda s, known: "rows")
    monkeypatch.setattr(torch_form, "rows", None)
    K, b = 2, 3
    x = tensor((K if stacked == "input" else 1, b, conv.groups * conv.i, *conv.spatial), torch.float32, "offset", 0)
    c = tensor((1 if stacked == "input" else K, b, conv.groups * conv.o, *conv.out), torch.float32, "offset", 1)
    given = (x if stacked == "input" else x[0]).to(DEVICE), c.to(DEVICE)
    with dispatch.use_backend("triton"):
        got = torch_form.gram_convolution(*given, window(conv), torch.float32)
    J = torch.cat([reference_rows(conv, row, c) for row in x]).reshape(K * b, math.prod(conv.weight))
    assert error(got.cpu(), J @ J.T) < 2e-6
