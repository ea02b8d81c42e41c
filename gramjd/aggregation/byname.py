"""Losses by name: what an aggregator keeps for each of them stays with it, in any order, and where some are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gramjd.aggregation._check import check_shape
from gramjd.aggregation._inner import check_inner, stated_scale_free
from gramjd.aggregation._stateful import Stateful
from gramjd.aggregation._weighting import Weighting, weigh
from gramjd.errors import AggregatorError


class ByName(Stateful, Weighting):
    """An aggregator for losses with names: a call sees those that are present, each with its preference and state.

    With the present losses P (in the order of `names`) the weights are those of `weighting` for the Gramian of P alone:

    - options with an entry per loss (`preference`, `weights`, `initial`) are read at P;
    - what is kept per loss or per pair of losses is read at P and written back there, the rest stays as it was;
    - weights on a simplex that are kept (`MoDo`, `SDMGrad`, `ExcessMTL`) are read at P in proportion, and P gets back
      as much of the simplex as it had.

    So a batch without one of the groups changes nothing that belongs to that group. Hand over losses by name:
    `gram_backward({"young": a, "old": b}, aggregator)`.

    Args:
        weighting: the aggregator, any function of the Gramian. What a function of your own keeps cannot be seen: it
            must be one for any number of losses.
        names: of all losses, in the order of the options of `weighting`.

    Raises:
        AggregatorError: bad options; losses without names, or with others; an aggregator that keeps something which
            belongs to no single loss, where one is missing; or what `weighting` raises.

    >>> import torch
    >>> from gramjd import ByName, UPGrad
    >>> aggregator = ByName(UPGrad(preference=[2.0, 1.0, 1.0]), ["a", "b", "c"])
    >>> aggregator(torch.eye(2), names=("c", "a"))
    tensor([1., 2.])
    """

    takes_losses: ClassVar[bool] = True  # only to hand them on
    takes_names: ClassVar[bool] = True

    def __init__(self, weighting: Callable[..., Tensor], names: Sequence[str]) -> None:
        """Check the options."""
        super().__init__()
        self._weighting = check_inner(weighting, "weighting")
        self._adopt(weighting=weighting)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names) or not len(names):
            raise AggregatorError(f"names must be strings, one per loss; got {names!r}")
        if len(set(names)) < len(names):
            raise AggregatorError(f"names must differ; got {list(names)}")
        self._all = tuple(names)
        if getattr(weighting, "_batches", 1) != 1:
            raise AggregatorError(f"{weighting!r} takes the losses of several batches, of which one name is not enough")

    @property
    def scale_free(self) -> bool | None:
        """What the aggregator inside says."""
        return stated_scale_free(self._weighting)

    def __call__(self, G: Tensor, losses: Tensor | None = None, names: Sequence[str] | None = None) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m] of the losses called `names`, in their order."""
        given = self._checked(check_shape(G), names)
        place = sorted(self._all.index(name) for name in given)
        # Row of the Gramian for each present loss in the order of all names.
        order = torch.tensor([given.index(self._all[k]) for k in place], device=G.device)
        values = None if losses is None else losses.reshape(-1)[order.to(losses.device)]
        H = G.index_select(0, order).index_select(1, order)
        if len(place) == len(self._all):
            w = weigh(self._weighting, H, values)
        else:
            with among(self._weighting, torch.tensor(place), len(self._all)):
                w = weigh(self._weighting, H, values)
        return torch.empty_like(w).index_copy_(0, order.to(w.device), w)

    def _checked(self, m: int, names: Sequence[str] | None) -> list[str]:
        if names is None and m == len(self._all):
            return list(self._all)
        if names is None:
            raise AggregatorError(
                f"{self!r} got {m} losses without names: hand over a dictionary, such as "
                f"gram_backward({{{self._all[0]!r}: loss, ...}}, aggregator)"
            )
        unknown = [name for name in names if name not in self._all]
        if unknown or len(names) != m or len(set(names)) < m:
            raise AggregatorError(f"{self!r} got {m} losses called {list(names)}: give one loss for each name it has")
        return list(names)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"ByName({self._weighting!r}, {list(self._all)})"


class Kind(NamedTuple):
    """How something that is kept for m losses is read at some of them, and written back.

    `start(m)` is what it is before the first call; `narrow(kept, place)` what the losses at `place` see;
    `widen(kept, new, place)` what is kept after they made it `new`.
    """

    start: Callable[[int], Tensor]
    narrow: Callable[[Tensor, Tensor], Tensor]
    widen: Callable[[Tensor, Tensor, Tensor], Tensor]


def _share(kept: Tensor, place: Tensor) -> Tensor:
    part = kept[place]
    return part / part.sum() if bool(part.sum() > 0) else torch.full_like(part, 1 / len(part))


def _pairs_written(kept: Tensor, new: Tensor, place: Tensor) -> Tensor:
    kept = kept.clone()
    kept[place[:, None], place] = new
    return kept


def _written(kept: Tensor, new: Tensor, place: Tensor) -> Tensor:
    return kept.index_copy(0, place, new)


def _float64(m: int, value: float) -> Tensor:
    return torch.full((m,), value, dtype=torch.float64)


# By the words of `_aligned`.
KINDS = {
    "each": Kind(lambda m: _float64(m, 0), lambda kept, place: kept[place], _written),
    "each, or not seen yet": Kind(lambda m: _float64(m, torch.nan), lambda kept, place: kept[place], _written),
    "pairs": Kind(
        lambda m: torch.zeros(m, m, dtype=torch.float64), lambda kept, place: kept[place][:, place], _pairs_written
    ),
    "share": Kind(
        lambda m: _float64(m, 1 / m),
        _share,
        lambda kept, new, place: _written(kept, new * kept[place].sum(), place),
    ),
    "log share": Kind(
        lambda m: _float64(m, 0),
        lambda kept, place: kept[place] - kept[place].logsumexp(0),
        lambda kept, new, place: _written(kept, new - new.logsumexp(0) + kept[place].logsumexp(0), place),
    ),
}


@contextmanager
def among(weighting: Any, place: Tensor, m: int) -> Iterator[None]:
    """Within the block an aggregator for m losses is one for those at `place`. If it fails, nothing has changed."""
    inside = [weighting, *getattr(weighting, "_inner", lambda: ())()]
    before = [_state(one) for one in inside]
    whole = [_whole(one, m) for one in inside]
    try:
        for one, kept in zip(inside, whole, strict=True):
            _narrow(one, kept, place, m)
        yield
        for one, kept in zip(inside, whole, strict=True):
            if kept is not None:
                kinds = type(one)._aligned
                there = {name: place.to(one._kept[name].device) for name in kept}
                one._kept = {
                    name: KINDS[kinds[name]].widen(old.to(there[name].device), one._kept[name], there[name])
                    for name, old in kept.items()
                }
    except BaseException:
        for one, (kept, _) in zip(inside, before, strict=True):
            if kept is not None:
                one._kept = kept
        raise
    finally:
        for one, (_, options) in zip(inside, before, strict=True):
            for name, value in options.items():
                setattr(one, name, value)


def _state(one: Any) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """What is kept, and the options with an entry per loss."""
    options = {name: getattr(one, name) for name in getattr(one, "_per_loss", ())}
    kept = dict(one._kept) if isinstance(one, Stateful) else None
    return kept, {name: value for name, value in options.items() if value is not None}


def _whole(one: Any, m: int) -> dict[str, Tensor] | None:
    """What is kept for all m losses, or its start; None where nothing is."""
    if not isinstance(one, Stateful) or not one._names:
        return None
    kinds = one._aligned
    if set(kinds) != set(one._names):
        raise AggregatorError(
            f"{one!r} keeps what belongs to no single loss ({', '.join(one._names)}): it needs all losses in every call"
        )
    found = {name: one._kept.get(name) for name in one._names}
    for name, value in found.items():
        if value is not None and len(value) != m:
            raise AggregatorError(f"{one!r} keeps its {name} for {len(value)} losses, but there are {m} names")
    return {name: KINDS[kinds[name]].start(m) if value is None else value for name, value in found.items()}


def _narrow(one: Any, kept: dict[str, Tensor] | None, place: Tensor, m: int) -> None:
    for name, value in _state(one)[1].items():
        if len(value) != m:
            raise AggregatorError(f"{one!r} has {len(value)} entries for {m} names: give one per name")
        setattr(one, name, value[place.to(value.device)])
    if kept is not None:
        one._kept = {
            name: KINDS[one._aligned[name]].narrow(value, place.to(value.device)) for name, value in kept.items()
        }
