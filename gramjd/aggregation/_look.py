"""When values of tensors may be read."""

from __future__ import annotations

import torch

READ_FREELY = ("cpu",)


def may_look(device: torch.device) -> bool:
    """Returns True if reading a value costs nothing.

    On a GPU the host would wait for it, and no CUDA graph could be recorded. Where it is False, weights come from a
    fixed sequence of operations, and what is no Gramian gets NaN, not an error.
    """
    return device.type in READ_FREELY
