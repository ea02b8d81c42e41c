"""Compile kernels for GPUs that are not there: what each configuration uses of the chip."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gramjd.kernels.triton import (
    chunks,
    convolution,
    cross,
    cross_chunks,
    cross_pairs,
    depthwise,
    norms,
    pairwise,
    segments,
    sums,
    symmetric,
    weighted,
)
from gramjd.kernels.triton.common import Config

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# Bytes of shared memory that one block may take.
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
LENGTHS = ("I", "O", "size_c", "size_x")
# Strides of 1, by whether the operands are images.
UNIT = {False: ("stride_xi", "stride_co", "stride_x2i", "stride_c2o"), True: ("stride_xw", "stride_cw")}
IMAGES = (convolution.gradients, depthwise.small_gradients)
OPERANDS = ("x", "c", "x2", "c2")
RESULTS = ("w", "out", "sums_c", "sums_x")


class Case(NamedTuple):
    """One kernel as it would be launched."""

    kernel: Any
    config: Config
    dtype: torch.dtype
    constants: tuple[tuple[str, Any], ...] = ()
    ids: bool = False
    uses_dot: bool = True

    def __str__(self) -> str:
        sizes = "-".join(str(n) for n in self.config.constants.values())
        flags = "".join(f"-{name}" for name, value in self.constants if value)
        return f"{self.kernel.__name__}-{sizes}{flags}-{str(self.dtype).removeprefix('torch.')}"


class Use(NamedTuple):
    """What a compiled kernel needs."""

    shared: int
    spilled: int
    ptx: str

    @property
    def tensor_cores(self) -> bool:
        return bool(re.search(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", self.ptx))


def compiled(case: Case, arch: int) -> Use:
    """Compile down to machine code: pointers and strides aligned, rows contiguous, as activations usually are."""
    names = case.kernel.arg_names
    constants = {**case.config.constants, **dict(case.constants), "UPCAST": False}
    constants |= dict.fromkeys(set(names) & set(UNIT[case.kernel in IMAGES]), 1)
    signature = {name: "constexpr" if name in constants else _type(name, case) for name in names}
    aligned = [name for name in names if name not in constants and _aligned(name, signature[name], case)]
    source = ASTSource(
        case.kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": case.config.num_warps, "num_stages": case.config.num_stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return Use(made.metadata.shared, _spilled(made), made.asm["ptx"])


def _aligned(name: str, kind: str, case: Case) -> bool:
    """Returns True for a multiple of 16, as pointers, strides but images' and lengths in whole blocks usually are."""
    stride = "stride" in name and case.kernel not in IMAGES
    return kind[0] == "*" or stride or (dict(case.constants).get("WHOLE", False) and name in LENGTHS)


def _type(name: str, case: Case) -> str:
    if name in ("x", "x2") and case.ids:
        return "*i64"
    if name in OPERANDS:
        return POINTERS[case.dtype]
    if name == "starts":
        return "*i32"
    return "*fp32" if name in RESULTS else "i32"


def _spilled(made: Any) -> int:
    """Bytes of registers kept in memory: none without a stack frame, else what the assembler says of its use."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(made.asm["cubin"])
        if "STACK:0 " in _run("cuobjdump", "--dump-resource-usage", cubin):
            return 0
        ptx.write_text(made.asm["ptx"])
        target = re.search(r"\.target (\w+)", made.asm["ptx"])
        assert target
        newest = "ptxas-blackwell" if (TOOLS / "ptxas-blackwell").exists() else "ptxas"
        text = _run(newest, "-v", f"--gpu-name={target[1]}", ptx, "-o", cubin)
    return sum(int(found) for found in re.findall(r"(\d+) bytes spill stores", text))


def _run(tool: str, *arguments: str | Path) -> str:
    command = [TOOLS / tool, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


SIZES = (1, 2, 3, 5, 8, 13, 16, 17, 24, 32, 33, 64, 100, 129, 512)


def every_case(arch: int, dtype: torch.dtype) -> Iterator[Case]:
    """Everything that the configuration functions return for `dtype` on `arch`, for many shapes."""
    seen = set()
    for case in _cases(arch, dtype):
        key = str(case), case.config.num_warps, case.config.num_stages
        if key not in seen:
            seen.add(key)
            yield case


def _cases(arch: int, dtype: torch.dtype) -> Iterator[Case]:
    for flag in (True, False):
        yield Case(sums.finish, sums.FINISH, dtype, (("TIMES_X", flag),), uses_dot=False)
    yield Case(cross.finish_rectangle, sums.FINISH, dtype, uses_dot=False)
    for whole in (("WHOLE", True), ("WHOLE", False)):
        yield from _of_rows(arch, dtype, whole)
        yield from _of_two_factors(arch, dtype, whole)
    yield from _of_images(arch, dtype)
    for side in (64, 512, 4096):
        yield Case(weighted.weighted, weighted.config_for(arch, dtype, 8192, side, side), dtype)


def _of_rows(arch: int, dtype: torch.dtype, whole: tuple[str, bool]) -> Iterator[Case]:
    for R in SIZES:
        yield Case(symmetric.partial, symmetric.config_for(arch, dtype, R, 4096), dtype, (whole,))
        for T in SIZES:
            config = pairwise.config_for(arch, dtype, R, T, 512)
            yield Case(norms.lengths, norms.config_for(arch, dtype, R, T), dtype, (whole,))
            yield Case(pairwise.pairs, config, dtype, (("IDS", False), whole))
            yield Case(pairwise.pairs, config, dtype, (("IDS", True), whole), ids=True)
            yield Case(segments.segments, segments.config_for(arch, dtype, R, 1, R * T), dtype, (whole,))
            tiled = chunks.config_for(arch, dtype, R, T, 512, 512)
            if tiled:
                yield Case(chunks.chunks, tiled, dtype, (whole,))


def _of_two_factors(arch: int, dtype: torch.dtype, whole: tuple[str, bool]) -> Iterator[Case]:
    for R, T in itertools.product(SIZES, SIZES):
        yield Case(cross.rectangle, cross.config_for(arch, dtype, R, T, 4096), dtype, (whole,))
        for R2, T2 in itertools.product(SIZES[::3], SIZES[::3]):
            config = cross_pairs.config_for(arch, dtype, R, T, R2, T2)
            yield Case(cross_pairs.cross_pairs, config, dtype, (("IDS", False), whole))
            yield Case(cross_pairs.cross_pairs, config, dtype, (("IDS", True), whole), ids=True)
            tiled = cross_chunks.config_for(arch, dtype, R, T, R2, T2, 512, 512)
            if tiled:
                yield Case(cross_chunks.cross_chunks, tiled, dtype, (whole,))


def _of_images(arch: int, dtype: torch.dtype) -> Iterator[Case]:
    for outputs, columns in itertools.product(SIZES, SIZES):
        yield Case(convolution.gradients, convolution.config_for(arch, 64, outputs, columns, 1024), dtype)
        config = depthwise.config_for(arch, outputs, 32, 9, columns * columns)
        yield Case(depthwise.small_gradients, config, dtype, uses_dot=False)
