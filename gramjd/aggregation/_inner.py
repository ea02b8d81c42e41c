"""What may stand where an aggregator is asked for: in a step, or inside an aggregator that is made of others."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gramjd.aggregation._coordinatewise import Coordinatewise
from gramjd.errors import AggregatorError

# Base classes of what is called with losses instead; nothing of that package is imported for it.
LOSSES = {
    ("gramjd.scalarization._scalarization", "Scalarization"),
    ("gramjd.scalarization.uncertainty", "Uncertainty"),
}


def stated_scale_free(weighting: Callable[..., Tensor]) -> bool | None:
    """What an aggregator says of itself; None for a plain function."""
    stated = getattr(weighting, "scale_free", None)
    return stated if isinstance(stated, bool) else None


def check_inner(weighting: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """`weighting`, if it can be called with a Gramian."""
    if isinstance(weighting, Coordinatewise):
        raise AggregatorError(f"{name} must be a function of the Gramian; {weighting!r} needs the gradients themselves")
    if any((base.__module__, base.__name__) in LOSSES for base in type(weighting).__mro__):
        one = type(weighting).__name__
        raise AggregatorError(
            f"{name} must be a function of the Gramian; {one} makes one loss of all: call it with the losses, and "
            "backward() of what it returns"
        )
    if not callable(weighting) or isinstance(weighting, type):
        got = f"{_shown(weighting)}{_instead(weighting)}"
        raise AggregatorError(f"{name} must be a function from G to weights, such as UPGrad(); got {got}")
    return weighting


def _shown(given: object) -> str:
    return f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)


def _instead(given: object) -> str:
    """What to write where something else was meant; empty where that cannot be told."""
    if isinstance(given, type):
        return f": an object of that class is {given.__name__}()"
    if isinstance(given, str):
        return ": pass the aggregator itself, of gramjd.aggregation"
    if isinstance(given, Tensor):
        return ": several losses are one list, [loss1, loss2]; fixed weights are Constant([1.0, 2.0])"
    return ": fixed weights are Constant([1.0, 2.0])" if isinstance(given, list | tuple) else ""
