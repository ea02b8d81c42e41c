"""Cost against the number of objectives, as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gramjd.experiments.aggregators import ENTRIES
from gramjd.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {"SGD": "-", "jacobian": ":", "per sample": "--", "gramjd": "-"}
PANELS = (
    ("seconds per epoch", lambda cost: cost["seconds_per_epoch"]["median"]),
    ("peak MB of a step", lambda cost: cost["peak_bytes"] / 1e6),
)


def draw(sizes: Mapping[str, Mapping[str, Mapping[str, Any]]], title: str) -> Figure:
    """Time of an epoch and peak memory over the batch size, both axes logarithmic.

    Args:
        sizes: batch size to contender to its cost, from `cost.compare`.
        title: name of the image set.
    """
    figure: Figure = require("matplotlib.figure", "demo").Figure(figsize=(11, 4.3), layout="constrained")
    names = list(dict.fromkeys(name for found in sizes.values() for name in found))
    for axes, (label, read) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for name in names:
            way, _, aggregator = name.partition(": ")
            at = [m for m, found in sizes.items() if name in found]
            colour = ENTRIES[aggregator].colour if aggregator else "black"
            values = [read(sizes[m][name]) for m in at]
            axes.plot([int(m) for m in at], values, STYLES[way], color=colour, marker="o", markersize=3.5, label=name)
        axes.set(xscale="log", yscale="log", xlabel="objectives (batch size)", ylabel=label)
        axes.set_xticks([int(m) for m in sizes], labels=list(sizes))
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"Cost of a step on the network for {title}", fontsize=11)
    return figure
