"""A step over the micro-batches of all ranks of a group: what each has kept, exchanged at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gramjd.distributed.gradients import add_sums
from gramjd.distributed.ranks import Ranks
from gramjd.distributed.side import Side, exchange_of, weights_over
from gramjd.engine import compute
from gramjd.engine.accumulate import Blocks
from gramjd.engine.autograd import plainly
from gramjd.engine.consumers.batches import joint
from gramjd.engine.memory import MemoryLimits
from gramjd.errors import LossError
from gramjd.losses import all_finite


def group_step(
    ranks: Ranks, blocks: Blocks, values: list[Tensor], aggregator: Any, scale: float
) -> tuple[Tensor, Tensor]:
    """Weights [M] and G [M, M] over the losses of all ranks, those of a rank in the order in which they were added.

    Adds to `.grad`. Call it within `ranks.together()`.

    Args:
        ranks: who takes part.
        blocks: what was kept.
        values: the losses of each micro-batch, detached.
        aggregator: from G to weights.
        scale: as in `gram_backward`.
    """
    assert blocks.inputs is not None, "with a group inputs are given"
    if not all(all_finite(value) for value in values):
        raise LossError("losses of a micro-batch are NaN or infinite")
    parameters = list(blocks.inputs)
    asked = not getattr(blocks.inputs, "optional", False)
    side = Side([value for value in values if value.numel()], None, parameters, False, asked)
    limits = MemoryLimits.of(side.losses or parameters[:1], blocks.memory_budget)
    exchange = exchange_of(ranks, side, limits, dtype=compute.wide_dtype([*side.losses, *parameters]))
    batches = [entry.batch for entry in blocks.entries if entry.batch is not None]
    with plainly():
        for parameter in reversed(parameters):
            jacobian = joint(batches, parameter)
            if jacobian.factors:
                exchange.note(parameter, jacobian)
        G = exchange.finish()
    side.check_reached(exchange)
    G = G if scale == 1 else G / scale / scale
    weights = weights_over(exchange, side, G, aggregator, scale=scale)
    start = sum(exchange.counts[: ranks.rank])
    mine = weights[start : start + side.m].split([entry.m for entry in blocks.entries])
    with plainly():
        found = {id(leaf): gradient for leaf, gradient in blocks.kept_update(mine)} if batches else {}
    add_sums(ranks, parameters, found, side.device)
    return weights, G
