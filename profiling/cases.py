"""The benchmark cases: a model, a batch and a loss vector each, as data.

    CASES["cifar-32"].build() -> Setup(model, forward, torchjd)

Names end in m, the number of losses. Weights and batch depend on the case alone, so that two builds of one case
are copies of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gramjd.profiling.models import GPT, MultiTask, PooledEncoder, cifar_net, mlp, vgg


@dataclass(frozen=True)
class Setup:
    """A case made ready to run.

    Args:
        model: the module whose parameters are trained.
        forward: `() -> losses [m]`, with a fresh graph each call.
        batch_dim: what TorchJD's engine has to be told about the model: 0 where samples stay apart, else None.
        engine_modules: the modules that TorchJD's engine has to be given.
    """

    model: nn.Module
    forward: Callable[[], Tensor]
    batch_dim: int | None
    engine_modules: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Case:
    """A line of the benchmark table. `build(device)` makes the model and its batch."""

    title: str
    m: int
    make: Callable[[int], Setup]

    def build(self, device: torch.device | str = "cpu") -> Setup:
        """Model, batch and losses on `device`; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            return self.make(self.m)


def _labelled(model: nn.Module, inputs: Tensor) -> Setup:
    """One cross-entropy loss per input, ten classes."""
    labels = torch.randint(10, (len(inputs),))

    def forward() -> Tensor:
        return cross_entropy(model(inputs), labels, reduction="none")

    return Setup(model, forward, 0, (model,))


def _mlp(m: int) -> Setup:
    return _labelled(mlp(), torch.randn(m, 784))


def _cifar(m: int) -> Setup:
    return _labelled(cifar_net(), torch.randn(m, 3, 32, 32))


def _vgg(m: int) -> Setup:
    return _labelled(vgg(), torch.randn(m, 3, 32, 32))


def _encoder(m: int) -> Setup:
    return _labelled(PooledEncoder(layers=4, width=256), torch.randn(m, 64, 256))


def _multi_task(m: int, batch: int = 256) -> Setup:
    """One loss per task, each the mean over a batch that all tasks share."""
    model = MultiTask(tasks=m)
    inputs, labels = torch.randn(batch, 784), torch.randint(10, (m, batch))

    def forward() -> Tensor:
        return torch.stack([cross_entropy(out, y) for out, y in zip(model(inputs), labels, strict=True)])

    # Only the trunk is shared, so only its Gramian says how the tasks conflict; every tool here takes all of it.
    return Setup(model, forward, None, (model,))


def gpt(m: int, vocabulary: int = 5000, length: int = 128) -> Setup:
    """One loss per sequence: mean cross-entropy of its next tokens."""
    model = GPT(vocabulary=vocabulary, length=length, layers=6, width=384)
    tokens = torch.randint(vocabulary, (m, length + 1))

    def forward() -> Tensor:
        logits = model(tokens[:, :-1])
        return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    return Setup(model, forward, 0, (model,))


def _family(name: str, title: str, sizes: tuple[int, ...], make: Callable[[int], Setup]) -> dict[str, Case]:
    return {f"{name}-{m}": Case(title, m, make) for m in sizes}


CASES: dict[str, Case] = {
    **_family("mlp", "MLP 784-1024-1024-10", (32, 128, 256), _mlp),
    **_family("cifar", "paper's CIFAR-10 net", (32, 64), _cifar),
    **_family("vgg", "VGG-like CNN, 3x32x32", (32, 64), _vgg),
    **_family("encoder", "transformer encoder, 4 layers, d 256, T 64", (16, 32), _encoder),
    **_family("tasks", "task losses on a shared trunk, batch 256", (10,), _multi_task),
    **_family("gpt", "GPT-2 style, 6 layers, d 384, T 128, tied head", (4, 8, 16), gpt),
    # Small enough for the test suite to run every part of the benchmarks.
    **_family("tiny", "smallest MLP", (4,), lambda m: _labelled(mlp((6, 5, 10)), torch.randn(m, 6))),
}

BENCHMARKS = tuple(name for name in CASES if not name.startswith("tiny"))


def select(names: str) -> list[str]:
    """Case names from a comma-separated list, in which `all` and family names such as `mlp` stand for several.

    Raises:
        ValueError: a name stands for nothing.

    >>> select("mlp-32,gpt")
    ['mlp-32', 'gpt-4', 'gpt-8', 'gpt-16']
    """
    chosen: list[str] = []
    for part in names.split(","):
        found = list(BENCHMARKS) if part == "all" else [n for n in CASES if n == part or n.rsplit("-", 1)[0] == part]
        if not found:
            raise ValueError(f"got case {part!r}, expected 'all', a family or a case among: {', '.join(CASES)}")
        chosen += [name for name in found if name not in chosen]
    return chosen
