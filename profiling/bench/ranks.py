"""Several ranks: bytes that a Gramian sends, time and memory of a step over the plain wrapped one, by kind of training.

    python -m gramjd.profiling.bench ranks --json profiling/results/ranks_cpu.json

Each kind is run by processes of this machine that meet by gloo. The plain step and gramjd's take turns on every rank;
CPU time is compared, as the processes share the cores, and the median over rounds is the mean over ranks. Bytes are
counted where they are sent. At last, without ranks: how far a mean of each rank's own update is from the joint one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import gramjd
from gramjd.profiling.bench.models import mlp
from gramjd.profiling.bench.ranks_tables import ranks_table
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.memory import peak_bytes
from gramjd.text_table import digits

RATE, ROUNDS = 1e-4, 9
WORDS, WIDTH, LENGTH, SENTENCES = 2000, 256, 64, 4
KINDS: dict[str, tuple[int, ...]] = {
    "DDP": (2, 4),
    "DDP, wide MLP": (2, 4),
    "DDP, task losses": (2, 4),
    "no wrapper": (2, 4),
    "no wrapper, reuse": (2, 4),
    "FSDP": (2, 4),
    "tensor-parallel": (2,),
    "FSDP x tensor": (4,),
}


class Block(nn.Module):
    """A pre-norm transformer block whose projections can be cut between heads of width 64."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, T, d] -> [b, T, d]`."""
        h = self.before(x)
        q, k, v = (p(h).unflatten(-1, (-1, 64)).transpose(1, 2) for p in (self.query, self.key, self.value))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.narrow(torch.nn.functional.gelu(self.wide(self.after(x))))


class Language(nn.Module):
    """A language model of four blocks. `[b, T] -> [b, T, words]`."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Work(NamedTuple):
    """A model as it is trained, its losses on this rank, and the options of gramjd's step."""

    model: nn.Module
    losses: Callable[[nn.Module], Tensor]
    options: dict[str, Any]


# -- on a rank --------------------------------------------------------------------------------------------------------


def _language(net: nn.Module, rank: int) -> Callable[[nn.Module], Tensor]:
    tokens = torch.randint(WORDS, (SENTENCES, LENGTH + 1), generator=torch.Generator().manual_seed(rank))

    def losses(model: nn.Module) -> Tensor:
        logits = model(tokens[:, :-1])
        return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    return losses


def _images(rank: int, tasks: bool) -> Callable[[nn.Module], Tensor]:
    draw = torch.Generator().manual_seed(rank)
    images, labels = torch.randn(64, 784, generator=draw), torch.randint(10, (4, 64), generator=draw)

    def losses(model: nn.Module) -> Tensor:
        logits = model(images)
        if tasks:
            return torch.stack([cross_entropy(logits, mine) for mine in labels])
        return cross_entropy(logits, labels[0], reduction="none")

    return losses


def _work(kind: str) -> Work:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    rank, world = dist.get_rank(), dist.group.WORLD
    if kind in ("DDP, wide MLP", "DDP, task losses"):
        model = DistributedDataParallel(mlp())
        options: dict[str, Any] = {"inputs": model, "group": world}
        if kind == "DDP, task losses":
            options["across"] = "mean"
        return Work(model, _images(rank, kind == "DDP, task losses"), options)
    net = Language()
    if kind == "DDP":
        model = DistributedDataParallel(net)
        return Work(model, _language(net, rank), {"inputs": model, "group": world})
    if kind.startswith("no wrapper"):
        update = "reuse" if "reuse" in kind else "backward"
        return Work(net, _language(net, rank), {"group": world, "update": update})
    return _spread(kind, net, rank)


def _spread(kind: str, net: Language, rank: int) -> Work:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    size = dist.get_world_size()
    tensor = 2 if "tensor" in kind else 1
    mesh = init_device_mesh("cpu", (size // tensor, tensor), mesh_dim_names=("data", "tensor"))
    if tensor > 1:
        columns, rows = ("query", "key", "value", "wide"), ("out", "narrow")
        plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in columns}
        plan |= {name: RowwiseParallel() for name in rows}
        for block in net.blocks:
            parallelize_module(block, mesh["tensor"], plan)
    if "FSDP" in kind:
        for block in net.blocks:
            fully_shard(block, mesh=mesh["data"])
        fully_shard(net, mesh=mesh["data"])
    mine = mesh.get_coordinate()
    options = {"group": mesh["data"].get_group()} if "FSDP" in kind else {}
    return Work(net, _language(net, mine[0] if mine else rank), options)


def _worker(kind: str, out: str) -> None:
    """Measure on this rank, and write what all ranks found from the first."""
    import torch.distributed as dist

    from gramjd.distributed import side

    class Counted(side.Exchange):
        """The last exchange is kept, to be asked what it sent."""

        last: Any = None

        def finish(self) -> Tensor:
            Counted.last = self
            return super().finish()

    side.Exchange = Counted  # type: ignore[misc]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work = _work(kind)
    parameters = [p for p in work.model.parameters() if p.requires_grad]
    wrapped = not kind.startswith("no wrapper")

    def plain() -> None:
        work.losses(work.model).mean().backward()
        if not wrapped:
            for p in parameters:
                dist.all_reduce(p.grad)
        _clear(work.model)

    def ours() -> None:
        gramjd.gram_backward(work.losses(work.model), gramjd.UPGrad(), **work.options)
        _clear(work.model)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: _rounds(step) for name, step in (("plain", plain), ("gramjd", ours))}
        ratios = [b / a for a, b in zip(*_in_turns(plain, ours), strict=True)]
        peaks = [_peak(step) for step in (plain, ours)]
    assert found, "both steps were made"
    sent = sum(one.bytes for one in Counted.last.sent) if Counted.last is not None else 0
    ways = [one.way for one in Counted.last.sent] if Counted.last is not None else []
    mine = {
        "time": float(torch.tensor(ratios).median()),
        "memory": peaks[1] / peaks[0],
        "sent": sent,
        "factors": ways.count("factors"),
        "rows": ways.count("rows"),
        "gradients": sum(p.numel() * p.element_size() for p in parameters),
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(everyone))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo abort a process now and then while it is torn down


def _clear(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None


def _peak(step: Callable[[], None]) -> int:
    """The median of three: what waits to be collected differs from call to call, on all ranks."""
    found = []
    for _ in range(3):
        gc.collect()
        found.append(peak_bytes(step))
    return sorted(found)[1]


def _rounds(step: Callable[[], None]) -> bool:
    for _ in range(2):
        step()
    return True


def _in_turns(first: Callable[[], None], second: Callable[[], None]) -> tuple[list[float], list[float]]:
    """CPU seconds of both, a fixed number of times: all ranks have to make the same steps."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for step, mine in zip((first, second), times, strict=True):
            start = time.process_time()
            step()
            mine.append(time.process_time() - start)
    return times


# -- the whole --------------------------------------------------------------------------------------------------------


def measure(kind: str, count: int, seconds: float = 300.0) -> dict[str, Any]:
    """Run one kind of training on so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "found.json"))
        code = f"from gramjd.profiling.bench.ranks import _worker; _worker({kind!r}, {out!r})"
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | meeting | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            printed = [process.communicate(timeout=seconds)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        if any(process.returncode for process in started):
            raise RuntimeError(f"{kind} on {count} ranks failed:\n" + "\n".join(text[-1000:] for text in printed))
        everyone = json.loads(Path(out).read_text())
    mean = {name: sum(one[name] for one in everyone) / count for name in everyone[0]}
    return {"kind": kind, "ranks": count, **{name: digits(number) for name, number in mean.items()}}


def local_errors(ranks: Sequence[int] = (2, 4, 8, 32), batch: int = 64, seeds: int = 3) -> list[dict[str, Any]]:
    """How far the mean of each part's own update is from the joint update, on a network of digits in training.

    Both are compared after scaling the mean to fit best: `error = min_c |c u_local - u| / |u|`, a sine.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = mlp((64, 64, 64, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for steps in (0, 100, 400):
            for _ in range(steps):
                pick = torch.randint(len(images), (batch,))
                optimizer.zero_grad()
                cross_entropy(net(images[pick]), labels[pick]).backward()
                optimizer.step()
            pick = torch.randperm(len(images))[:batch]
            for count in ranks:
                error = _local_error(net, images[pick], labels[pick], count)
                found.append({"seed": seed, "steps": steps, "ranks": count, "batch": batch, "error": digits(error)})
    return found


def _local_error(net: nn.Module, images: Tensor, labels: Tensor, ranks: int) -> float:
    def update(x: Tensor, y: Tensor) -> Tensor:
        mine = copy.deepcopy(net).double()
        gramjd.gram_backward(cross_entropy(mine(x.double()), y, reduction="none"), gramjd.UPGrad())
        return torch.cat([p.grad.flatten() for p in mine.parameters() if p.grad is not None])

    joint = update(images, labels)
    local = torch.stack([update(x, y) for x, y in zip(images.chunk(ranks), labels.chunk(ranks), strict=True)]).mean(0)
    cosine = float(joint @ local / joint.norm() / local.norm())
    return max(0.0, 1 - cosine**2) ** 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--kinds", default="all", help=f"by semicolons, of {'; '.join(KINDS)} (default: all)")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="write the results here, kind by kind; those of other kinds stay"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write and print."""
    wanted = list(KINDS) if args.kinds == "all" else [kind.strip() for kind in args.kinds.split(";")]
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    results: dict[str, Any] = {"environment": describe(), "products": products_used()}
    results["clock"] = "CPU time of a rank, one thread each"
    results["errors"] = known.get("errors") or local_errors()
    results["cases"] = [case for case in known.get("cases", ()) if case["kind"] not in wanted]
    for kind in wanted:
        for count in KINDS[kind]:
            case = measure(kind, count) | {"load": os.getloadavg()[0]}
            results["cases"].append(case)
            results["cases"].sort(key=lambda case: (list(KINDS).index(case["kind"]), case["ranks"]))
            print(f"{kind} on {count} ranks: time {case['time']:.2f}, memory {case['memory']:.2f}", flush=True)
            _write(args.json, results)
    print(ranks_table(results))
    return 0


def _write(path: Path | None, results: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n")
