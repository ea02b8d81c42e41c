"""Where the random aggregators draw from."""

from __future__ import annotations

import torch

from gramjd.errors import AggregatorError


def as_generator(seed: int | torch.Generator | None) -> torch.Generator | None:
    """A CPU generator from `seed`; None stands for torch's global one, which `torch.manual_seed` seeds."""
    if seed is None:
        return None
    if isinstance(seed, torch.Generator) and seed.device.type == "cpu":
        return seed
    if isinstance(seed, int) and not isinstance(seed, bool):
        return torch.Generator().manual_seed(seed)
    got = f"a generator on {seed.device}" if isinstance(seed, torch.Generator) else repr(seed)
    raise AggregatorError(f"seed must be an int, a torch.Generator on the CPU, or None for torch's own; got {got}")
