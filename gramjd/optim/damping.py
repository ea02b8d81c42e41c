"""How far a linear model is trusted: a damping that falls where the model was right and grows where it was not."""

from __future__ import annotations

from dataclasses import dataclass

ACCEPTED = 1e-4  # of the predicted reduction, the least part that a step has to bring


@dataclass(frozen=True)
class Damping:
    """Nielsen's rule, with the gain ratio `g` = actual over predicted reduction of the loss.

    After a step with `g > 0`, lambda is multiplied by `max(1/3, 1 - (2 g - 1)^3)`; after a rejected one by 2, then 4,
    8, ...: a smooth rule, under which lambda neither jumps nor flutters between two values.

    Source: Nielsen, Damping parameter in Marquardt's method (1999), equation 3.5; Madsen, Nielsen and Tingleff, Methods
    for non-linear least squares problems (2004), algorithm 3.16.

    >>> damping = Damping(1.0)
    >>> damping.lowered(1.0).value, damping.raised().raised().value
    (0.3333333333333333, 8.0)
    """

    value: float
    growth: float = 2.0

    def lowered(self, gain: float) -> Damping:
        """After a step that was accepted."""
        return Damping(self.value * max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3))

    def raised(self) -> Damping:
        """After a step that was rejected."""
        return Damping(self.value * self.growth, 2 * self.growth)

    def at_least(self, floor: float) -> Damping:
        """The same, no smaller than `floor`."""
        return self if self.value >= floor else Damping(floor, self.growth)
