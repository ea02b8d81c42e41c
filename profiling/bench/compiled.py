"""A step compiled and not: plain and gramjd's, over the plain eager step, with the time that compiling takes.

    python -m gramjd.profiling.bench compiled --threads 1 --json profiling/results/compiled_cpu.json

Contenders take turns in one process, each on its own copy of the model; a step is forward, gradient and SGD. On one
thread CPU time is compared, on several wall time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.compiled import _compilers
from gramjd.compiled.held import Held, replaced
from gramjd.compiled.trace import trace
from gramjd.errors import InputError
from gramjd.experiments.networks import cifar_net
from gramjd.kernels import use_backend
from gramjd.profiling.bench.compiled_tables import compiled_steps
from gramjd.profiling.bench.models import GPT, MultiTask, PooledEncoder, mlp, vgg
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.timing import interleave, ratio, spread
from gramjd.text_table import aligned, digits

RATE = 1e-4
AT_LEAST = 0.01  # seconds of a contender per round


class Work(NamedTuple):
    """A model, a batch, and the losses of a batch."""

    model: nn.Module
    batch: tuple[Tensor, ...]
    losses: Callable[..., Any]


class Pinn(nn.Module):
    """Residuals of a heat equation in one dimension, by two derivatives of a small network."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.Tanh())]
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), *hidden, nn.Linear(width, 1, bias=False))

    def forward(self, points: Tensor) -> Tensor:
        t, x = points[:, :1].clone().requires_grad_(), points[:, 1:].clone().requires_grad_()
        u = self.net(torch.cat([t, x], 1))
        ut, ux = torch.autograd.grad(u.sum(), (t, x), create_graph=True)
        (uxx,) = torch.autograd.grad(ux.sum(), x, create_graph=True)
        return (ut - 0.1 * uxx).squeeze(1)


def _labelled(model: nn.Module, inputs: Tensor) -> Work:
    labels = torch.randint(10, (len(inputs),))
    return Work(model, (inputs, labels), lambda model, x, y: cross_entropy(model(x), y, reduction="none"))


def _tasks(m: int, width: int, batch: int) -> Work:
    model = MultiTask(tasks=m) if width == 1024 else SmallTasks(m, width)
    data = torch.randn(batch, 784 if width == 1024 else 16), torch.randint(10, (m, batch))

    def losses(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([cross_entropy(out, y) for out, y in zip(model(x), labels, strict=True)])

    return Work(model, data, losses)


class SmallTasks(nn.Module):
    """Heads on a small trunk."""

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self.trunk(x)
        return [head(hidden) for head in self.heads]


def _gpt(m: int, layers: int, width: int, length: int, vocabulary: int) -> Work:
    model = GPT(vocabulary=vocabulary, length=length, layers=layers, width=width)

    def losses(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1])
        return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    return Work(model, (torch.randint(vocabulary, (m, length + 1)),), losses)


CASES: dict[str, Callable[[], Work]] = {
    "tiny-32": lambda: _labelled(mlp((64, 32, 32, 10)), torch.randn(32, 64)),
    "tasks-3": lambda: _tasks(3, 64, 64),
    "pinn-64": lambda: Work(Pinn(), (torch.rand(64, 2),), lambda model, points: model(points).square()),
    "mlp-32": lambda: _labelled(mlp(), torch.randn(32, 784)),
    "mlp-128": lambda: _labelled(mlp(), torch.randn(128, 784)),
    "mlp-256": lambda: _labelled(mlp(), torch.randn(256, 784)),
    "cifar-32": lambda: _labelled(cifar_net(), torch.randn(32, 3, 32, 32)),
    "vgg-32": lambda: _labelled(vgg(), torch.randn(32, 3, 32, 32)),
    "encoder-16": lambda: _labelled(PooledEncoder(layers=4, width=256), torch.randn(16, 64, 256)),
    "gpt-4": lambda: _gpt(4, 4, 256, 64, 2000),
}


class Ready(NamedTuple):
    """A contender on its copy: `take()` makes a step; seconds that it took to trace and compile."""

    take: Callable[[], object]
    seconds: float


def _plain(work: Work) -> Ready:
    optimizer = torch.optim.SGD(work.model.parameters(), lr=RATE)

    def take() -> None:
        optimizer.zero_grad()
        work.losses(work.model, *work.batch).mean().backward()
        optimizer.step()

    return Ready(take, 0.0)


def _plain_compiled(work: Work) -> Ready:
    """The plain step traced whole, as `gramjd.compile` traces its own: the fairest base of a compiled one."""
    start = time.perf_counter()
    held = Held(work.model, None)
    count = len(held.places)

    def program(*given: Tensor) -> list[Tensor]:
        leaves = [nn.Parameter(t) for t in given[: len(held.parameters)]]
        with torch.enable_grad(), replaced(held.places, [*leaves, *given[len(leaves) : count]]):
            loss = work.losses(work.model, *given[count:]).mean()
            gradients = torch.autograd.grad(loss, leaves)
        for p, g in zip(given, gradients, strict=False):
            p.sub_(g * RATE)
        return [loss.detach()]

    inputs = [*[place.tensor.detach() for place in held.places], *work.batch]
    run = _compilers.compiled_graph(trace(program, inputs, donates=False, shorter=False).graph, inputs, {})

    def take() -> None:
        with torch.no_grad():
            run(*inputs)

    take()
    return Ready(take, time.perf_counter() - start)


def _eager(aggregator: str, update: str) -> Callable[[Work], Ready]:
    def make(work: Work) -> Ready:
        optimizer = torch.optim.SGD(work.model.parameters(), lr=RATE)
        chosen = getattr(gramjd, aggregator)()

        def take() -> None:
            optimizer.zero_grad()
            gramjd.gram_backward(work.losses(work.model, *work.batch), chosen, update=update)
            optimizer.step()

        return Ready(take, 0.0)

    return make


def _compiled(aggregator: str, update: str, mode: str) -> Callable[[Work], Ready]:
    def make(work: Work) -> Ready:
        optimizer = torch.optim.SGD(work.model.parameters(), lr=RATE)
        model, losses = work.model, work.losses
        step = gramjd.compile(
            lambda *batch: losses(model, *batch),
            model,
            optimizer,
            getattr(gramjd, aggregator)(),
            update=update,
            mode=mode,
        )
        step(*work.batch)
        start = time.perf_counter()
        step(*work.batch)
        seconds = time.perf_counter() - start
        if not step.graphs:
            raise InputError(f"{mode} made no graph")
        return Ready(lambda: step(*work.batch), seconds)

    return make


CONTENDERS: dict[str, Callable[[Work], Ready]] = {
    "plain": _plain,
    "plain compiled": _plain_compiled,
    **{
        f"{aggregator} {update} {name}": make
        for aggregator in ("Mean", "UPGrad")
        for update in ("backward", "reuse")
        for name, make in (
            ("eager", _eager(aggregator, update)),
            ("graph", _compiled(aggregator, update, "graph")),
            ("compiled", _compiled(aggregator, update, "default")),
        )
    },
}


def measure(name: str, seconds: float, wanted: Sequence[str], threads: int, rounds: int = 200) -> dict[str, Any]:
    """Ratios to the plain eager step, seconds to compile, and peak memory of a step, for one case."""
    torch.manual_seed(0)
    work = CASES[name]()
    ready: dict[str, Ready] = {}
    refused: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for contender in wanted:
            try:
                ready[contender] = CONTENDERS[contender](work._replace(model=copy.deepcopy(work.model)))
            except Exception as error:  # a contender that cannot take a case is named in the table
                refused[contender] = f"{type(error).__name__}: {str(error)[:200]}"
        clock = time.process_time if threads == 1 else time.perf_counter
        taken = {name: one.take for name, one in ready.items()}
        times = interleave(taken, rounds=rounds, warmup=1, seconds=seconds, at_least=AT_LEAST, clock=clock)
        peaks = {contender: peak_bytes(one.take) for contender, one in ready.items()}
    found: dict[str, Any] = {contender: {"refused": reason} for contender, reason in refused.items()}
    for contender, spent in times.items():
        found[contender] = {
            "milliseconds": spread([1e3 * t for t in spent]).rounded(),
            "ratio": ratio(spent, times["plain"]).rounded(),
            "seconds_to_compile": digits(ready[contender].seconds),
            "peak_bytes": peaks[contender],
        }
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cases", default=",".join(CASES), help="by commas (default: all)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=15.0, help="timed per case (default: 15)")
    parser.add_argument(
        "--backend", choices=("torch", "auto"), default="torch", help="products of gramjd's kernels (default: torch)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1, with CPU time)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="add the results to this file, case by case")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write case by case."""
    torch.set_num_threads(args.threads)
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.cases.split(","):
        with use_backend(args.backend):
            found = measure(name, args.seconds, args.contenders.split(","), args.threads)
            environment = {**describe(), "products": products_used(), "load": os.getloadavg()[0]}
        rows = [[name, "ratio", "ms", "compiled in s", "MB"]]
        for contender, result in found.items():
            if "refused" in result:
                rows.append([contender, "refused", "", "", result["refused"][:60]])
                continue
            cells = result["ratio"]["median"], result["milliseconds"]["median"], result["seconds_to_compile"]
            rows.append([contender, *[f"{cell:.3g}" for cell in cells], f"{result['peak_bytes'] / 1e6:.1f}"])
        print(aligned(rows, "lrrrr"), flush=True)
        where = f"threads {args.threads}, {args.backend}"
        known.setdefault(where, {"environment": environment, "cases": {}})["cases"][name] = found
        if args.json:
            args.json.write_text(json.dumps(known, indent=1) + "\n")
    print(f"\n{compiled_steps(known)}")
    return 0
