"""The options of a step over all processes of a training."""

from __future__ import annotations

from typing import Any

import torch

from gramjd.engine.graph import several_processes


def over_all(wrapped: Any) -> dict[str, Any]:
    """`group` and `inputs` for one Gramian over all processes; nothing where there is one process.

    Args:
        wrapped: the model as it is trained, maybe in DistributedDataParallel.
    """
    if not several_processes():
        return {}
    is_wrapper = isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
    return {"group": torch.distributed.group.WORLD, **({"inputs": wrapped} if is_wrapper else {})}
