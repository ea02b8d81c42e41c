"""What may stand where a weighting is asked for: in a step, or inside a weighting that is made of others."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gramjd.aggregation._coordinatewise import Coordinatewise
from gramjd.errors import AggregatorError


def stated_scale_free(weighting: Callable[..., Tensor]) -> bool | None:
    """What a weighting says of itself; None for a plain function."""
    stated = getattr(weighting, "scale_free", None)
    return stated if isinstance(stated, bool) else None


def check_inner(weighting: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """`weighting`, if it can be called with a Gramian."""
    if isinstance(weighting, Coordinatewise):
        raise AggregatorError(f"{name} must be a function of the Gramian; {weighting!r} needs the gradients themselves")
    if not callable(weighting) or isinstance(weighting, type):
        raise AggregatorError(f"{name} must be a function from G to weights, such as UPGrad(); got {weighting!r}")
    return weighting
