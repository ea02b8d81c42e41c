"""The benchmark cases: a model, a batch and a loss vector each, as data.

    CASES["cifar-32"].build() -> Work(model, parameters, losses, m, device, batch_dims)

Names end in m, the number of losses. Weights and batch depend on the case alone, so that two builds of one case
are copies of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gramjd.errors import InputError
from gramjd.experiments.networks import cifar_net
from gramjd.profiling.bench.models import GPT, MultiTask, PooledEncoder, mlp, vgg
from gramjd.profiling.target import Work


@dataclass(frozen=True)
class Case:
    """A line of the benchmark table. `build(device)` makes the model and its batch."""

    title: str
    m: int
    make: Callable[[int], Work]

    def build(self, device: torch.device | str = "cpu") -> Work:
        """Model, batch and losses on `device`; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            return self.make(self.m)


def work_on(model: nn.Module, m: int, losses: Callable[[], Tensor], batch_dim: int | None = 0) -> Work:
    """A step on a model that is known.

    Args:
        model: whose parameters are trained.
        m: number of losses.
        losses: the forward pass.
        batch_dim: what TorchJD's engine has to be told: 0 where samples stay apart, else None.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    return Work(model, parameters, losses, m, device, (batch_dim,))


def _labelled(model: nn.Module, inputs: Tensor) -> Work:
    """One cross-entropy loss per input, ten classes."""
    labels = torch.randint(10, (len(inputs),))

    def forward() -> Tensor:
        return cross_entropy(model(inputs), labels, reduction="none")

    return work_on(model, len(inputs), forward)


def _mlp(m: int) -> Work:
    return _labelled(mlp(), torch.randn(m, 784))


def _cifar(m: int) -> Work:
    return _labelled(cifar_net(), torch.randn(m, 3, 32, 32))


def _vgg(m: int) -> Work:
    return _labelled(vgg(), torch.randn(m, 3, 32, 32))


def _encoder(m: int) -> Work:
    return _labelled(PooledEncoder(layers=4, width=256), torch.randn(m, 64, 256))


def _multi_task(m: int, batch: int = 256) -> Work:
    """One loss per task, each the mean over a batch that all tasks share."""
    model = MultiTask(tasks=m)
    inputs, labels = torch.randn(batch, 784), torch.randint(10, (m, batch))

    def forward() -> Tensor:
        return torch.stack([cross_entropy(out, y) for out, y in zip(model(inputs), labels, strict=True)])

    # Only the trunk is shared, so only its Gramian says how the tasks conflict; every tool here takes all of it.
    return work_on(model, m, forward, batch_dim=None)


def gpt(m: int, vocabulary: int = 5000, length: int = 128) -> Work:
    """One loss per sequence: mean cross-entropy of its next tokens."""
    model = GPT(vocabulary=vocabulary, length=length, layers=6, width=384)
    tokens = torch.randint(vocabulary, (m, length + 1))

    def forward() -> Tensor:
        logits = model(tokens[:, :-1])
        return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    return work_on(model, m, forward)


def _family(name: str, title: str, sizes: tuple[int, ...], make: Callable[[int], Work]) -> dict[str, Case]:
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
        InputError: a name stands for nothing.

    >>> select("mlp-32,gpt")
    ['mlp-32', 'gpt-4', 'gpt-8', 'gpt-16']
    """
    chosen: list[str] = []
    for part in names.split(","):
        found = list(BENCHMARKS) if part == "all" else [n for n in CASES if n == part or n.rsplit("-", 1)[0] == part]
        if not found:
            raise InputError(f"got case {part!r}, expected 'all', a family or a case among: {', '.join(CASES)}")
        chosen += [name for name in found if name not in chosen]
    return chosen
