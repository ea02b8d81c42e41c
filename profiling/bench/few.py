"""Few task losses on a shared trunk: a step over plain training, beside m plain passes and TorchJD's `mtl_backward`.

    python -m gramjd.profiling.bench few --json profiling/results/few_cpu.json

Contenders take turns in one process on one thread, each on its own copy of the model, and CPU time is compared, which
leaves out what other programs take. A step is forward, gradients, SGD. gramjd's products come from PyTorch's own
library first, as everybody else's do, then from the one that gramjd chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.engine import compute
from gramjd.engine.choice import only
from gramjd.engine.survey import survey_of
from gramjd.errors import InputError
from gramjd.kernels.dispatch import chosen
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.methods import RefusalError, said, torchjd, torchjd_aggregator
from gramjd.profiling.timing import interleave, ratio, spread
from gramjd.text_table import aligned

RATE = 1e-4
CLASSES = 10


class Tasks(NamedTuple):
    """A trunk, a head per task, a batch with labels per task."""

    trunk: nn.Module
    heads: nn.ModuleList
    batch: Tensor
    labels: Tensor

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        """Features, and the loss of each task."""
        features = self.trunk(self.batch)
        pairs = zip(self.heads, self.labels, strict=True)
        return features, [cross_entropy(head(features), labels) for head, labels in pairs]

    @property
    def shared(self) -> list[Tensor]:
        """The parameters of the trunk."""
        return list(self.trunk.parameters())

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters."""
        return [*self.trunk.parameters(), *self.heads.parameters()]


class Case(NamedTuple):
    """`trunk()` on a batch of shape `batch`, which gives `width` features, with m heads."""

    title: str
    m: int
    trunk: Callable[[], nn.Module]
    width: int
    batch: tuple[int, ...]

    def build(self) -> Tasks:
        """The same weights and batch each time; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            heads = nn.ModuleList(nn.Linear(self.width, CLASSES) for _ in range(self.m))
            labels = torch.randint(CLASSES, (self.m, self.batch[0]))
            return Tasks(self.trunk(), heads, torch.randn(self.batch), labels)


def _mlp(*widths: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        *[layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())],
    )


def _cnn() -> nn.Module:
    convolutions = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * 6 * 7, 64), nn.ReLU())


CASES = {
    "mlp8-2": Case("MLP of three layers of 8, batch 4", 2, _mlp(8, 8, 8, 8), 8, (4, 8)),
    "mlp64-2": Case("MLP 16-64-64, batch 32", 2, _mlp(16, 64, 64), 64, (32, 16)),
    "cnn16-2": Case("CNN of 16 channels, 10x11, batch 64", 2, _cnn, 64, (64, 1, 10, 11)),
    **{f"mlp256-{m}": Case("MLP 64-256-256, batch 64", m, _mlp(64, 256, 256), 256, (64, 64)) for m in (2, 4, 10)},
    "mlp1024-2": Case("MLP 784-1024-1024, batch 64", 2, _mlp(784, 1024, 1024), 1024, (64, 784)),
    "mlp1024-10": Case("MLP 784-1024-1024, batch 256", 10, _mlp(784, 1024, 1024), 1024, (256, 784)),
}
Make = Callable[[Tasks], Callable[[], None]]


def _plain(work: Tasks) -> Callable[[], None]:
    return lambda: torch.stack(work.forward()[1]).sum().backward()


def _passes(work: Tasks) -> Callable[[], None]:
    """The definition: a backward pass per task, J stacked, `J J^T`, `J^T w`; a head's gradient comes with its pass."""
    weigh, shared = gramjd.UPGrad(), work.shared
    heads = [list(head.parameters()) for head in work.heads]

    def step() -> None:
        _, losses = work.forward()
        rows = []
        for k, (loss, head) in enumerate(zip(losses, heads, strict=True)):
            found = torch.autograd.grad(loss, [*shared, *head], retain_graph=k + 1 < len(losses))
            rows.append(torch.cat([g.flatten() for g in found[: len(shared)]]))
            for parameter, gradient in zip(head, found[len(shared) :], strict=True):
                parameter.grad = gradient
        J = torch.stack(rows)
        update = weigh(J @ J.T) @ J
        for tensor, gradient in zip(shared, update.split([p.numel() for p in shared]), strict=True):
            tensor.grad = gradient.view_as(tensor)

    return step


def _torchjd(work: Tasks) -> Callable[[], None]:
    backward, to_grad = torchjd("autojac", "mtl_backward"), torchjd("autojac", "jac_to_grad")
    combine, shared = torchjd_aggregator("UPGrad"), work.shared

    def step() -> None:
        features, losses = work.forward()
        backward(losses, features=features)
        to_grad(shared, combine)

    return step


def _gramjd(update: str, backend: str) -> Make:
    def make(work: Tasks) -> Callable[[], None]:
        weigh = gramjd.UPGrad()

        def step() -> None:
            with chosen(backend):
                gramjd.mtl_backward(work.forward()[1], weigh, update=update)

        return step

    return make


CONTENDERS: dict[str, Make] = {
    "plain": _plain,
    "m passes": _passes,
    "TorchJD": _torchjd,
    "gramjd, same products": _gramjd("backward", "torch"),
    "gramjd reuse, same products": _gramjd("reuse", "torch"),
    "gramjd": _gramjd("backward", "auto"),
    "gramjd reuse": _gramjd("reuse", "auto"),
}


def measure(case: Case, rounds: int, seconds: float, contenders: Sequence[str] = tuple(CONTENDERS)) -> dict[str, Any]:
    """CPU time of every contender's step and its ratio to the plain one's, as plain data."""
    steps: dict[str, Callable[[], None]] = {}
    results: dict[str, Any] = {}
    for name in contenders:
        try:
            steps[name] = trained(CONTENDERS[name], case.build())
        except RefusalError as error:
            results[name] = {"refused": said(error)}
    times = interleave(steps, rounds=rounds, seconds=seconds, at_least=0.02, clock=time.process_time)
    results |= summary(times)
    return {name: results[name] for name in contenders}


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """For each contender its time, the ratio to the plain one's, and the number of rounds."""
    return {
        name: {
            "milliseconds": spread([1e3 * t for t in spent]).rounded(),
            "ratio": ratio(spent, times["plain"]).rounded(),
            "rounds": len(spent),
        }
        for name, spent in times.items()
    }


def trained(make: Make, work: Tasks) -> Callable[[], None]:
    """A step with its optimiser."""
    step, optimizer = make(work), torch.optim.SGD(work.parameters, lr=RATE)

    def take() -> None:
        optimizer.zero_grad()
        step()
        optimizer.step()

    return take


def overheads(rounds: int = 50) -> dict[str, float]:
    """Seconds of a visit of a node in a walk, and of a call in a pass, on a network of which nothing else counts."""
    work = CASES["mlp8-2"].build()
    _, losses = work.forward()
    graph = compute.read(losses, None)
    survey = survey_of(graph, losses)

    def gramian(way: str) -> Callable[[], object]:
        def call() -> None:
            with only(way):
                compute.total_of(graph, losses)

        return call

    times = interleave(
        {way: gramian(way) for way in ("walk", "passes")}, rounds=rounds, at_least=0.01, clock=time.process_time
    )
    counts = {"walk": len(graph.structure.order), "passes": survey.calls}
    return {way: spread(spent).median / counts[way] for way, spent in times.items()}


def load() -> float | None:
    """The load of the machine over the last minute, where the system tells it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def report(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A result without cases: `facts` about the machine and what computes products, the clock, the load, `settings`."""
    return {**facts, "clock": "CPU time of one thread", "load": load(), "settings": dict(settings), "cases": {}}


def line(name: str, found: Mapping[str, Any]) -> list[str]:
    """A row of what is printed while measuring."""
    plain = f"{found['plain']['milliseconds']['median']:.3g} ms"
    cells = [
        "refused" if "refused" in one else f"{one['ratio']['median']:.2f}" for k, one in found.items() if k != "plain"
    ]
    return [name, plain, *cells]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cases", default=",".join(CASES), help="by commas (default: all)")
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds per case (default: 40)")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed per case, 5 rounds at least (default: 20)")
    parser.add_argument(
        "--overheads", action="store_true", help="print what a node costs each way, and measure nothing else"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write case by case."""
    torch.set_num_threads(1)
    if args.overheads:
        print(aligned([["way", "us a node"], *([way, f"{1e6 * s:.1f}"] for way, s in overheads().items())], "lr"))
        return 0
    unknown = set(args.cases.split(",")) - set(CASES)
    if unknown:
        raise InputError(f"got cases {', '.join(sorted(unknown))}; expected some of {', '.join(CASES)}")
    facts = {"environment": describe(), "products": products_used()}
    found = report(facts, {"rounds": args.rounds, "seconds_per_case": args.seconds})
    rows = [["case", *CONTENDERS]]
    for name in args.cases.split(","):
        case = CASES[name]
        results = measure(case, args.rounds, args.seconds)
        found["cases"][name] = {"title": case.title, "m": case.m, "load": load(), "contenders": results}
        rows.append(line(name, results))
        print(aligned(rows, "l" + "r" * len(CONTENDERS)), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0
