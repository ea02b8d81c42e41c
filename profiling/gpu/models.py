"""The models of the section on steps: those of the CPU's table, and those that a CPU cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gramjd.profiling.bench.cases import CASES, work_on
from gramjd.profiling.bench.models import mlp
from gramjd.profiling.target import Work

BASIC = ("plain", "gramjd Mean", "gramjd UPGrad", "gramjd UPGrad triton", "gramjd Mean reuse")
BESIDE = (*BASIC, "torchjd Mean", "torchjd UPGrad")
# UPGrad's solve grows with the cube of m.
LINEAR = ("plain", "gramjd Mean", "gramjd Mean triton", "gramjd Mean reuse")


class Item(NamedTuple):
    """A model with its losses, and who takes a step on it."""

    name: str
    m: int
    build: Callable[[], Work]
    contenders: tuple[str, ...]


def items(device: str, dry: bool) -> list[Item]:
    """All of them, the most telling first; in a dry run three tiny ones."""
    if dry:
        return [
            _case("tiny-4", device, BESIDE),
            Item("gpt2 float32", 2, lambda: gpt2(2, device, torch.float32, length=6, tiny=True), BASIC[:3]),
            Item("wide mlp", 4, lambda: wide(4, device, width=8, layers=2), LINEAR[:2]),
        ]
    f32, bf16 = torch.float32, torch.bfloat16
    return [
        _gpt2(8, device, f32),
        _case("mlp-256", device, BESIDE),
        _case("encoder-32", device, BESIDE),
        _gpt2(16, device, bf16),
        _case("cifar-64", device, BESIDE),
        Item("MLP, 1.07e9 parameters", 64, lambda: wide(64, device), BASIC),
        Item("MLP 784-256-10", 4096, lambda: narrow(4096, device), LINEAR),
        _case("tasks-10", device, BESIDE),
        _case("vgg-64", device, BESIDE),
        *(_gpt2(m, device, dtype) for m, dtype in ((16, f32), (2, f32), (4, bf16), (4, f32), (8, bf16), (2, bf16))),
        *(_case(name, device, BASIC) for name in ("mlp-32", "encoder-16", "cifar-32", "vgg-32", "gpt-16", "gpt-4")),
    ]


def _case(name: str, device: str, contenders: tuple[str, ...]) -> Item:
    case = CASES[name]
    return Item(case.title, case.m, lambda: case.build(device), contenders)


def _gpt2(m: int, device: str, dtype: torch.dtype) -> Item:
    name = f"GPT-2 124M, T 512, {str(dtype).removeprefix('torch.')}"
    return Item(name, m, lambda: gpt2(m, device, dtype), BASIC)


def gpt2(m: int, device: str, dtype: torch.dtype, length: int = 512, tiny: bool = False) -> Work:
    """GPT-2 as its configuration makes it, with random weights: one loss per sequence. Nothing is downloaded.

    Raises:
        ImportError: transformers is not installed.
    """
    transformers = import_module("transformers")
    small = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 8} if tiny else {}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**still, **small, use_cache=False, bos_token_id=0, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).to(device, dtype)
        tokens = torch.randint(config.vocab_size, (m, length + 1)).to(device)

    def forward() -> Tensor:
        logits = model(input_ids=tokens[:, :-1]).logits
        return cross_entropy(logits.transpose(1, 2).float(), tokens[:, 1:], reduction="none").mean(1)

    return work_on(model, m, forward)


def wide(m: int, device: str, width: int = 8192, layers: int = 16) -> Work:
    """Square linear layers, a loss per sample: 16 of 8192 are a billion parameters."""
    return _regression(mlp((width,) * (layers + 1)), m, width, device)


def narrow(m: int, device: str) -> Work:
    """A small network with very many losses."""
    return _regression(mlp((784, 256, 10)), m, 784, device)


def _regression(model: nn.Module, m: int, width: int, device: str) -> Work:
    model = model.to(device)
    inputs = torch.randn(m, width, generator=torch.Generator().manual_seed(0)).to(device)
    return work_on(model, m, lambda: model(inputs).square().mean(1))
