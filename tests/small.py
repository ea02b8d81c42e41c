"""Models small enough to check by hand, and what the tests of the public functions share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gramjd.profiling.bench.models import GPT

F64, F32 = torch.float64, torch.float32


def mlp(*widths: int, dtype: torch.dtype = F64) -> nn.Sequential:
    """Linear layers with tanh between them; 5-6-4 unless told otherwise."""
    widths = widths or (5, 6, 4)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def squares(model: nn.Module, b: int = 4, i: int = 5, dtype: torch.dtype = F64) -> Tensor:
    """One loss a sample of random data, [b]."""
    return model(torch.randn(b, i, dtype=dtype)).square().flatten(1).sum(1)


def cnn(dtype: torch.dtype = F64) -> nn.Sequential:
    """Two convolutions and a head on [b, 2, 6, 6]."""
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    )
    return model.to(dtype)


def encoder(dtype: torch.dtype = F64) -> nn.Sequential:
    """A transformer encoder layer on [b, T, 8]."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3)).to(dtype)


def batch_norm_net(width: int = 6, dtype: torch.dtype = F64) -> nn.Sequential:
    """Batch normalisation in training mode: it mixes the samples."""
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)


def gpt(vocabulary: int, length: int, layers: int, width: int = 64) -> tuple[GPT, Callable[[int], Tensor]]:
    """A language model with a tied head, and a function that makes one loss a sequence of random tokens."""
    model = GPT(vocabulary, length, layers, width)

    def losses(m: int) -> Tensor:
        tokens = torch.randint(vocabulary, (m, length + 1))
        logits = model(tokens[:, :-1]).transpose(1, 2)
        return F.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(1)

    return model, losses


def grads(tensors: Iterable[Tensor]) -> list[Tensor | None]:
    """Copies of `.grad`."""
    return [None if t.grad is None else t.grad.clone() for t in tensors]


def clear(tensors: Iterable[Tensor]) -> None:
    """`.grad = None` everywhere."""
    for tensor in tensors:
        tensor.grad = None


def same(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(a, b, strict=True)
    )
