"""`gramjd paper objections`: why exact UPGrad may fall behind, seen in the Gramian and the weights of its training.

The same network, batches and rate with UPGrad as it is defined, with the ridge of the published implementation, with
`negligible=0.1`, and with Mean. Each step tells how large a weight became, how many gradients are short, how many
directions G has, and by how much the mean loss of the batch rose in the step.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import gramjd
from gramjd import arguments
from gramjd.errors import LossError
from gramjd.experiments import plots
from gramjd.experiments.aggregators import ENTRIES, NEGLIGIBLE
from gramjd.experiments.data.images import Images
from gramjd.experiments.data.sets import DATA
from gramjd.experiments.networks import build
from gramjd.experiments.report import align
from gramjd.experiments.results import write
from gramjd.experiments.running import progress, threads
from gramjd.experiments.training import BATCH
from gramjd.extras import require
from gramjd.profiling.environment import describe
from gramjd.profiling.figure_style import clean, plain_decades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("UPGrad", "UPGrad + ridge", "UPGrad + negligible", "Mean")
# Per step: its name, what it is called, and whether its axis is logarithmic.
SIGNALS = {
    "loss": ("mean loss of the batch", True),
    "largest": ("largest weight, times m", True),
    "short": (f"share of gradients below {NEGLIGIBLE:g} RMS", False),
    "rank": ("effective rank of G", False),
}
HEADER = ("aggregator", "epoch", "loss", "largest rise in a step", "largest weight x m", "short gradients", "rank")

add_arguments = arguments.paper_objections


def run(args: argparse.Namespace) -> int:
    """Train with all of `NAMES`, save `objections-SET.json` and `objections-SET.png`, print the table (or the JSON)."""
    require("matplotlib", "demo")
    runs = []
    with threads(args.threads), progress("run", total=len(NAMES) * args.seeds) as bar:
        for seed in range(args.seeds):
            data = DATA[args.data].load(args.root, seed)
            for name in NAMES:
                bar.set_description(f"{name} seed {seed}")
                epochs = followed(args.data, name, args.rate, data, epochs=args.epochs, seed=seed)
                runs.append({"aggregator": name, "seed": seed, "epochs": epochs})
                bar.update()
    environment = describe(packages=("torch", "gramjd", "scikit-learn"))
    results = {"environment": environment, "data": args.data, "rate": args.rate, "seeds": args.seeds, "runs": runs}
    text = write(results, args.out / f"objections-{args.data}.json")
    plot = plots.save(draw(results), args.out / f"objections-{args.data}.png")
    print(text if args.json else f"{align([HEADER, *rows(runs)])}\n\nPlot: {plot}")
    return 0


def followed(key: str, name: str, rate: float, data: Images, *, epochs: int, seed: int) -> list[dict[str, float]]:
    """Per epoch the medians over its steps of what `seen` tells, and the largest rise of a batch's loss in a step.

    A run that diverges has fewer epochs.

    Args:
        key: of the image set, whose network is trained.
        name: of the aggregator.
        rate: of plain SGD.
        data: images and labels.
        epochs: passes over the training images.
        seed: of weights, batches and aggregator.
    """
    model, aggregator = build(DATA[key].network, seed), ENTRIES[name].make(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    shuffle = torch.Generator().manual_seed(seed)
    found: list[dict[str, float]] = []
    for _ in range(epochs):
        steps = []
        for batch in torch.randperm(len(data.train_images), generator=shuffle).split(BATCH):
            images, labels = data.train_images[batch], data.train_labels[batch]
            losses = cross_entropy(model(images), labels, reduction="none")
            optimizer.zero_grad()
            try:
                step = gramjd.gram_backward(losses, aggregator, update="reuse")
            except LossError:
                return found
            optimizer.step()
            with torch.no_grad():
                after = cross_entropy(model(images), labels)
            before = losses.detach().mean()
            steps.append({"loss": float(before), "rise": float(after - before), **seen(step.gramian, step.weights)})
        medians = {name: float(torch.tensor([s[name] for s in steps]).median()) for name in steps[0]}
        found.append(medians | {"rise": max(s["rise"] for s in steps)})
    return found


def seen(gramian: Tensor, weights: Tensor) -> dict[str, float]:
    """What one step tells: the largest weight times m, the share of short gradients, the effective rank.

    The effective rank is `tr(G)^2 / sum_ij G_ij^2`: the number of directions if all were equally long.

    Args:
        gramian: `[m, m]`.
        weights: `[m]`.

    >>> seen(torch.eye(4), torch.full((4,), 0.25))
    {'largest': 1.0, 'short': 0.0, 'rank': 4.0}
    """
    G, w = gramian.detach().double(), weights.detach().double()
    squares = G.diagonal()
    short = squares < NEGLIGIBLE**2 * squares.mean()
    rank = squares.sum().square() / G.square().sum()
    return {"largest": float(len(w) * w.max()), "short": float(short.double().mean()), "rank": float(rank)}


def rows(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Per aggregator its first, a middle and its last epoch, medians over the seeds; the largest rise of all seeds."""
    lines = []
    for name in dict.fromkeys(run["aggregator"] for run in runs):
        curves = [run["epochs"] for run in runs if run["aggregator"] == name]
        longest = max(map(len, curves))
        for epoch in sorted({0, longest // 2, longest - 1} & set(range(longest))):
            at = [curve[epoch] for curve in curves if len(curve) > epoch]
            middle = {key: float(torch.tensor([a[key] for a in at]).median()) for key in SIGNALS}
            rise = max(a["rise"] for a in at)
            lost = "" if len(at) == len(curves) else f" ({len(curves) - len(at)} of {len(curves)} diverged)"
            cells = [f"{middle['loss']:.4f}", f"{rise:.2f}", f"{middle['largest']:.3g}"]
            cells += [f"{100 * middle['short']:.0f}%", f"{middle['rank']:.1f}"]
            lines.append([name + lost, str(epoch + 1), *cells])
    return lines


def draw(results: Mapping[str, Any]) -> Figure:
    """A panel per signal over the epochs: a thin line per seed, a thick one for their median."""
    title = f"{DATA[results['data']].title}, one objective per image, batch {BATCH}, SGD at rate {results['rate']:g}"
    figure = plots.new_figure(6.4, f"{title}; medians of an epoch's steps, thin: single seeds")
    for axes, (signal, (label, logarithmic)) in zip(figure.subplots(2, 2).flat, SIGNALS.items(), strict=True):
        for name in NAMES:
            curves = [[e[signal] for e in r["epochs"]] for r in results["runs"] if r["aggregator"] == name]
            style: dict[str, Any] = {"color": ENTRIES[name].colour, "ls": ENTRIES[name].dash}
            for curve in curves:
                axes.plot(plots.middles(curve), curve, linewidth=0.6, alpha=0.5, **style)
            whole = [list(values) for values in zip(*(curve for curve in curves if curve), strict=False)]
            middle = [float(torch.tensor(values).median()) for values in whole] or [math.nan]
            axes.plot(plots.middles(middle), middle, linewidth=2.2, label=name, **style)
        axes.set_ylabel(label)
        if logarithmic:
            axes.set_yscale("log")
            plain_decades(axes.yaxis)
        clean(axes).set_xlabel("epoch")
    plots.legend_beside(figure)
    return figure
