"""Random loss weighting: new weights in every step."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._seed import as_generator
from gramjd.scalarization._scalarization import Scalarization


class RandomLossWeights(Scalarization):
    """`sum_i w_i L_i` with `w = softmax(z)`, z standard normal, drawn anew in every call.

    Args:
        seed: an int, for draws of its own; a torch.Generator on the CPU; or None for torch's global generator.

    Source: Lin, Ye, Zhang and Tsang, Reasonable effectiveness of random weighting (2022), where it is called RLW.

    >>> import torch
    >>> weighted = RandomLossWeights(seed=0)(torch.ones(3, requires_grad=True))
    >>> round(weighted.item(), 6)  # the weights add up to 1
    1.0
    """

    def __init__(self, seed: int | torch.Generator | None = None) -> None:
        """Make the generator."""
        super().__init__()
        self._generator = as_generator(seed)
        self._start = None if self._generator is None else self._generator.get_state()

    def _scalar(self, losses: Tensor) -> Tensor:
        z = torch.randn(len(losses), generator=self._generator, dtype=torch.float64)
        return (z.softmax(0).to(losses) * losses).sum()

    def reset(self) -> None:
        """Start the draws again."""
        if self._generator is not None and self._start is not None:
            self._generator.set_state(self._start)

    def state_dict(self) -> dict[str, Tensor]:
        """Where the draws are; empty for torch's global generator."""
        return {} if self._generator is None else {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        super().load_state_dict(state)
        found = self._kept.pop("generator", None)
        if self._generator is not None and found is not None:
            self._generator.set_state(found.cpu())
