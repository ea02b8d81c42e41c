"""`gramjd paper cost`: the paper's Table 7 and what section 6 promised, in seconds per epoch and peak memory.

Plain SGD, the materialised Jacobian and gramjd take steps in turns in one process, on random images of each set's shape
and the set's network; an epoch is 1024 images. The first table is at batch 32, the second one over batch sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gramjd import arguments
from gramjd.errors import InputError
from gramjd.experiments import aggregators, plots
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.report import align
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.experiments.steps import SGD, WAYS, Compiled, Fill, Task, compare
from gramjd.extras import require
from gramjd.profiling.environment import describe
from gramjd.profiling.figure_style import INK, clean, plain_decades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCH = 1024
SWEPT = ("Mean", "UPGrad")
BASE, COMPILED_BASE = "SGD", "compiled: SGD"
STYLES = {BASE: "-", "compiled": "-.", "jacobian": ":", "per sample": "--", "gramjd": "-"}
SIZES, FILLS = {"Mean": 8.0}, {"Mean": "none"}  # a ring that is seen around the points of others
# The paper's Table 7: seconds per epoch of 32 steps on an L4 GPU.
PAPER: dict[str, dict[str, float]] = {
    "svhn": {
        **{"SGD": 0.79, "Mean": 1.41, "UPGrad": 1.80, "DualProj": 1.51, "PCGrad": 2.78, "MGDA": 5.50, "Nash-MTL": 7.88},
        **{"IMTL-G": 1.48, "CAGrad": 1.93, "Aligned-MTL": 1.53, "RGW": 1.42, "GradDrop": 1.57},
    },
    "cifar10": {
        **{"SGD": 0.50, "Mean": 1.76, "UPGrad": 2.01, "DualProj": 1.88, "PCGrad": 3.13, "MGDA": 5.22, "Nash-MTL": 8.12},
        **{"IMTL-G": 1.79, "CAGrad": 2.26, "Aligned-MTL": 1.98, "RGW": 1.76, "GradDrop": 1.90},
    },
    "eurosat": {
        **{"SGD": 0.81, "Mean": 2.93, "UPGrad": 3.21, "DualProj": 3.02, "PCGrad": 4.18, "MGDA": 6.91, "Nash-MTL": 9.33},
        **{"IMTL-G": 2.94, "CAGrad": 3.42, "Aligned-MTL": 2.97, "RGW": 2.89, "GradDrop": 3.06},
    },
    "mnist": {
        **{"SGD": 0.47, "Mean": 1.64, "UPGrad": 1.90, "DualProj": 1.76, "PCGrad": 3.01, "MGDA": 5.22, "Nash-MTL": 7.91},
        **{"IMTL-G": 1.69, "CAGrad": 2.17, "Aligned-MTL": 1.71, "RGW": 1.73, "GradDrop": 1.78},
    },
}
PANELS = (
    ("time of an epoch, s", lambda cost: cost["seconds_per_epoch"]["median"]),
    ("peak memory of a step, MB", lambda cost: cost["peak_bytes"] / 1e6),
)

add_arguments = arguments.paper_cost


def run(args: argparse.Namespace) -> int:
    """Measure, save `cost.json` and `cost.png`, print both tables (or the JSON)."""
    require("matplotlib", "demo")
    if args.quick:
        args.sets, args.swept, args.sizes = "digits", "digits", (32, 64)
    keys = args.sets.split(",")
    if not set(keys) <= set(arguments.COST_SETS):
        raise InputError(f"got sets {args.sets}; expected names among: {', '.join(arguments.COST_SETS)}")
    names = aggregators.select(args.weightings)
    with threads(args.threads or torch.get_num_threads()):
        environment = describe(packages=("torch", "gramjd"), device=args.device)
        results = {"environment": environment, **_measure(args, keys, names)}
    text = write(results, args.out / "cost.json")
    plot = plots.save(draw(results["sizes"], DATA[args.swept].title), args.out / "cost.png")
    print(text if args.json else f"{table(results)}\n\nPlot: {plot}")
    return 0


def _measure(args: argparse.Namespace, keys: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    sizes = {m: _contenders(SWEPT, ("per sample", "gramjd")) for m in args.sizes}
    for m in (m for m in args.sizes if m <= args.jacobian_up_to):
        sizes[m] |= _contenders(SWEPT, ("jacobian",))
    with progress("comparison", total=len(keys) + len(sizes)) as bar:

        def measured(key: str, m: int, contenders: Mapping[str, Fill | Compiled]) -> dict[str, dict[str, Any]]:
            found = epoch_costs(task(key, m, args.device), contenders, rounds=args.rounds)
            bar.update()
            return found

        all_ways = _contenders(names, ("jacobian", "gramjd"))
        if args.compiled:
            all_ways |= {COMPILED_BASE: Compiled()}
            all_ways |= {f"compiled: {name}": Compiled(name) for name in names if name in SWEPT}
        sets = {key: measured(key, 32, all_ways) for key in keys}
        over_m = {str(m): measured(args.swept, m, contenders) for m, contenders in sizes.items()}
    return {"epoch": EPOCH, "swept": args.swept, "sets": sets, "sizes": over_m}


def _contenders(names: Sequence[str], ways: Sequence[str]) -> dict[str, Fill | Compiled]:
    return {BASE: SGD, **{f"{way}: {name}": WAYS[way](name) for way in ways for name in names}}


def task(key: str, m: int, device: str) -> Task:
    """A batch of m random images of a set's shape with random labels, and the set's network."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(m, *DATA[key].shape, generator=generator).to(device)
    return Task(DATA[key].network, images, torch.randint(10, (m,), generator=generator).to(device))


def epoch_costs(on: Task, contenders: Mapping[str, Fill | Compiled], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds per epoch, time over the first contender's and peak memory of a step, as plain values.

    Args:
        on: network and batch.
        contenders: how each fills `.grad`; SGD first.
        rounds: timed rounds.
    """
    costs = compare(on, contenders, rounds=rounds, scale=EPOCH / len(on.labels))
    return {name: cost.to_dict("seconds_per_epoch", "over_sgd") for name, cost in costs.items()}


def table(results: Mapping[str, Any]) -> str:
    """Both tables as text."""
    blocks = [f"{DATA[key].title}, batch 32\n{align(rows(found))}" for key, found in results["sets"].items()] + [
        f"{DATA[results['swept']].title}, batch {m}\n{align(rows(found))}" for m, found in results["sizes"].items()
    ]
    return "\n\n".join(blocks)


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line per way and aggregator, under a head."""
    lines = [["way", "aggregator", "s/epoch", "over SGD", "peak MB", "over SGD"]]
    base = found[BASE]["peak_bytes"]
    for name, cost in found.items():
        way, _, aggregator = name.partition(": ")
        seconds, over = cost["seconds_per_epoch"]["median"], cost["over_sgd"]["median"]
        memory = [f"{cost['peak_bytes'] / 1e6:.1f}", f"{cost['peak_bytes'] / base:.2f}"]
        lines.append([way, aggregator or "-", f"{seconds:.3f}", f"{over:.2f}", *memory])
    return lines


def beside_the_paper(key: str, found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line per aggregator, under a head: each way's time and memory over SGD's, and the paper's.

    Args:
        key: of the image set.
        found: contender to its cost, from `epoch_costs`.
    """
    ways = ("jacobian", "gramjd", "compiled")
    head = ["aggregator", "s/epoch", *(f"{way}: over SGD" for way in ways), "over compiled SGD", "paper: over SGD"]
    lines = [[*head, *(f"memory, {way}" for way in ways[:2])]]
    paper, base = PAPER.get(key, {}), found[BASE]
    for name in dict.fromkeys(contender.rpartition(": ")[2] for contender in found):
        by_way = {way: found.get(BASE if (way, name) == ("gramjd", BASE) else f"{way}: {name}") for way in ways}
        over = [f"{cost['over_sgd']['median']:.2f}" if cost else "-" for cost in by_way.values()]
        seconds = f"{by_way['gramjd']['seconds_per_epoch']['median']:.3f}" if by_way["gramjd"] else "-"
        both = by_way["compiled"], found.get(COMPILED_BASE)
        compiled = f"{_median(both[0]) / _median(both[1]):.2f}" if both[0] and both[1] else "-"
        theirs = f"{paper[name] / paper[BASE]:.2f}" if name in paper else "-"
        memory = [f"{c['peak_bytes'] / base['peak_bytes']:.2f}" if c else "-" for c in list(by_way.values())[:2]]
        lines.append([name, seconds, *over, compiled, theirs, *memory])
    return lines


def _median(cost: Mapping[str, Any]) -> float:
    return float(cost["seconds_per_epoch"]["median"])


def draw(sizes: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> Figure:
    """Time of an epoch and peak memory over the batch size, both axes logarithmic.

    Args:
        sizes: batch size to contender to its cost, from `epoch_costs`.
        title: name of the image set.
    """
    figure = plots.new_figure(4.3, f"Cost of a step on the network for {title}")
    names = list(dict.fromkeys(name for found in sizes.values() for name in found))
    for axes, (label, read) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for name in names:
            way, _, aggregator = name.partition(": ")
            at = [m for m, found in sizes.items() if name in found]
            colour = aggregators.ENTRIES[aggregator].colour if aggregator else INK
            values = [read(sizes[m][name]) for m in at]
            mark = {"marker": "o", "markersize": SIZES.get(aggregator, 3.5), "markerfacecolor": FILLS.get(aggregator)}
            axes.plot([int(m) for m in at], values, STYLES[way], color=colour, label=name, **mark)
        axes.set(xscale="log", yscale="log", xlabel="objectives (batch size)", ylabel=label)
        axes.set_xticks([int(m) for m in sizes], labels=list(sizes))
        axes.minorticks_off()
        plain_decades(axes.yaxis)
        clean(axes)
    plots.legend_beside(figure)
    return figure
