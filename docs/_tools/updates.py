"""The drawings of the aggregators, which `drawings.py` writes: what each family makes of a few gradients.

All arrows are computed by the library. Updates are drawn at one length, as their lengths are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from looks import BLUE, GREEN, INK, VERMILION, arrow, canvas, cells, say
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from torch import Tensor

from gramjd import aggregation

STYLES = tuple((colour, dash) for dash in ("-", (0, (3, 2))) for colour in (GREEN, VERMILION, BLUE))
CONFLICT = torch.tensor([[2.0, 0.3], [-1.5, 1.6]], dtype=torch.float64)
LONG = torch.tensor([[3.0, 0.45], [-0.75, 0.8]], dtype=torch.float64)
Updates = Mapping[str, Callable[[], Any]]


def panels(count: int, height: float = 3.2) -> tuple[Figure, Sequence[Any]]:
    """Axes side by side, with a legend above that is drawn last."""
    figure = Figure(figsize=(8.4, height), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def draw_updates(axes: Any, J: Tensor, makers: Updates, title: str, cone: bool = True) -> None:
    """Gradients in grey, the cone where nobody loses, and the direction of each update, each a little longer."""
    reach = 1.15 * float(J.norm(dim=1).max())
    if cone:
        edges = [torch.stack([-g[1], g[0]]) / g.norm() for g in J]
        edges = [e if e @ other > 0 else -e for e, other in zip(edges, J.flip(0), strict=True)]
        corners = [(0.0, 0.0), *(tuple((reach * e).tolist()) for e in edges)]
        axes.add_patch(Polygon(corners, fc=GREEN, alpha=0.18, ec="none"))
    for k, gradient in enumerate(J.tolist()):
        arrow(axes, (0, 0), tuple(gradient), INK, 1.6)
        beyond = 1 + 0.25 / np.hypot(*gradient)
        if len(J) == 2 or k == len(J) - 1:  # of many the last, which is told about
            say(axes, beyond * gradient[0], beyond * gradient[1], f"g{'₁₂₃₄₅'[k]}", fontsize=11)
    for k, (name, make) in enumerate(makers.items()):
        update = make().aggregate(J)
        length = reach * (0.62 + 0.08 * k)
        end = (length * update / update.norm().clamp_min(1e-12)).tolist()
        colour, dash = STYLES[k]
        axes.plot([0, end[0]], [0, end[1]], color=colour, ls=dash, lw=2.2, label=name)
        axes.plot(*end, "o", color=colour, ms=5)
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.axis("off")


def named(figure: Figure, axes: Any) -> Figure:
    """A legend above all axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(labels), labelcolor=INK)
    return figure


def in_conflict(makers: Updates) -> Figure:
    """Two gradients in conflict, alike in length and not."""
    figure, (left, right) = panels(2)
    draw_updates(left, CONFLICT, makers, "two gradients in conflict")
    draw_updates(right, LONG, makers, "the first four times as long")
    return named(figure, left)


def cone() -> Figure:
    """UPGrad, DualProj, CAGrad, MGDA."""
    return in_conflict(
        {
            "UPGrad": aggregation.UPGrad,
            "DualProj": aggregation.DualProj,
            "CAGrad(c=0.5)": lambda: aggregation.CAGrad(0.5),
            "MGDA": aggregation.MGDA,
        }
    )


def fair() -> Figure:
    """NashMTL, FairGrad, IMTLG, AlignedMTL, ConFIG."""
    return in_conflict(
        {
            "NashMTL": aggregation.NashMTL,
            "FairGrad(0.5)": lambda: aggregation.FairGrad(0.5),
            "IMTLG": aggregation.IMTLG,
            "AlignedMTL": aggregation.AlignedMTL,
            "ConFIG": aggregation.ConFIG,
        }
    )


def surgery() -> Figure:
    """PCGrad, GradVac, GradDrop."""
    makers = {"PCGrad": aggregation.PCGrad, "GradVac": aggregation.GradVac, "GradDrop": aggregation.GradDrop}
    return in_conflict({name: lambda make=make: make(seed=1) for name, make in makers.items()})


def baselines() -> Figure:
    """Mean and Sum, Constant, Random."""
    return in_conflict(
        {
            "Mean, Sum": aggregation.Mean,
            "Constant([3, 1])": lambda: aggregation.Constant([3.0, 1.0]),
            "Random": lambda: aggregation.Random(seed=1),
        }
    )


def robust() -> Figure:
    """Mean, Krum and TrimmedMean of five gradients, one of which is corrupt."""
    good = torch.tensor([[1.6, 1.2], [1.9, 0.9], [1.5, 0.8], [1.8, 1.4]], dtype=torch.float64)
    makers = {"Mean": aggregation.Mean, "Krum(1)": lambda: aggregation.Krum(1)}
    makers["TrimmedMean(1)"] = lambda: aggregation.TrimmedMean(1)
    figure, (left, right) = panels(2)
    for axes, last, title in ((left, [1.7, 0.6], "five samples"), (right, [1.0, -3.2], "the fifth is corrupt")):
        J = torch.cat([good, torch.tensor([last], dtype=torch.float64)])
        draw_updates(axes, J, makers, title, cone=False)
    return named(figure, left)


def least_squares() -> Figure:
    """From one point of a narrow valley: the step along the gradient, and those of GaussNewton and Sven."""
    A = torch.tensor([[1.0, 1.0], [0.25, -0.25]], dtype=torch.float64)
    start = torch.tensor([2.0, -0.4], dtype=torch.float64)
    figure, (axes,) = panels(1, 3.4)
    x, y = torch.linspace(-1.2, 2.6, 121), torch.linspace(-1.3, 1.5, 121)
    grid = torch.cartesian_prod(x, y).double()
    values = (grid @ A.mT).square().sum(1).view(121, 121).mT / 2
    levels = [0.02 * 2**k for k in range(8)]
    axes.contour(x, y, values, levels=levels, colors=INK, linewidths=0.7, alpha=0.7)
    steps = {
        "along the gradient": A.mT @ (A @ start) / torch.linalg.matrix_norm(A, 2) ** 2,
        "GaussNewton(damping=1e-3)": _step(aggregation.GaussNewton(damping=1e-3), A, start),
        "Sven": _step(aggregation.Sven(), A, start),
    }
    for k, (name, step) in enumerate(steps.items()):
        (colour, dash), end = STYLES[(k + 1) % 3 + 3 * (k == 2)], start - step
        axes.plot([start[0], end[0]], [start[1], end[1]], color=colour, ls=dash, lw=2.4, label=name)
        axes.plot(*end.tolist(), "o", color=colour, ms=6)
    axes.plot(*start.tolist(), "s", color=INK, ms=6)
    say(axes, 2.15, -0.55, "start", fontsize=11)
    say(axes, -0.05, -0.3, "all residuals zero", fontsize=11)
    axes.set_aspect("equal")
    axes.axis("off")
    return named(figure, axes)


def _step(aggregator: Any, A: Tensor, x: Tensor) -> Tensor:
    r = A @ x
    return A.mT @ aggregator(A @ A.mT, r)


def adaptive() -> Figure:
    """The weight of the first loss over calls with gradients that turn at half time."""
    figure, (axes,) = panels(1, 3.0)
    makers = {
        "CRMOGM(UPGrad())": lambda: aggregation.CRMOGM(aggregation.UPGrad()),
        "MoDo": lambda: aggregation.MoDo(gamma=0.05),
        "ExcessMTL": aggregation.ExcessMTL,
        "PCD": aggregation.PCD,
    }
    for k, (name, make) in enumerate(makers.items()):
        aggregator, shares = make(), []
        for call in range(80):
            J = CONFLICT if call < 40 else LONG
            w = aggregator(J @ J.mT)
            shares.append(float(w[0] / w.sum()))
        axes.plot(shares, color=STYLES[k][0], ls=STYLES[k][1], lw=2, label=name)
    axes.axvline(40, color=INK, lw=1, ls=":")
    axes.set_xlabel("call", color=INK)
    axes.set_ylabel("share of the first\nweight in all", color=INK)
    axes.set_ylim(0, 1)
    axes.tick_params(colors=INK)
    for side in axes.spines.values():
        side.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(41, 0.04, "from here on the first gradient is longer", color=INK, fontsize=10)
    return named(figure, axes)


def nested() -> Figure:
    """Losses of four samples and three tasks, combined along one axis and then along the other."""
    figure, axes = canvas(8.4, 2.6, 40, 12)
    shades = (BLUE, VERMILION, GREEN)
    for x, first in ((1, "tasks"), (22, "samples")):
        along = first == "tasks"
        cells(axes, x, 9, 4, 3, lambda i, j, t=along: shades[i % 3] if t else shades[j])
        arrow(axes, (x + 3.6, 7), (x + 6, 7))
        cells(axes, x + 6.6, 9, *((4, 1) if along else (1, 3)), lambda i, j, t=along: shades[i % 3] if t else shades[j])
        arrow(axes, (x + 10.2, 7 if along else 8.5), (x + 12.6, 7 if along else 8.5))
        cells(axes, x + 13.2, 9, 1, 1, lambda i, j: INK)
        say(axes, x + 1.5, 10, "losses [4, 3]", fontsize=11)
        say(axes, x + 7, 3.6, f'first="{first}"', fontsize=12)
        other = "one per sample" if along else "one per task"
        say(axes, x + 7.6 + (0 if along else 0.6), 10, other, fontsize=11)
        say(axes, x + 13.7, 10, "update", fontsize=11)
    axes.set(xlim=(-1, 38), ylim=(2.6, 11))
    return figure
