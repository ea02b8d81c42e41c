"""One way to call everything that can be checked: an aggregator of the Gramian, a function of G, an aggregator of J."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gramjd.aggregation import Weighting
from gramjd.errors import InputError

_FLOOR = 1e-6
TAKES = ("gramian", "jacobian")


class RaisedError(Exception):
    """The aggregator raised an error of its own; the message says which."""


@dataclass(frozen=True)
class Update:
    """`A(J)` in float64, and the size of the terms it is made of: what its rounding errors are relative to.

    Args:
        y: [n], the update.
        size: `sum_i |w_i| |g_i|` where the weights are known (and a millionth of the longest gradient, for weights
            that are zero but for rounding); else, as if the update were a mean, `|y| + max_i |g_i|`.
    """

    y: Tensor
    size: float


Call = Callable[[Tensor], Update]


@dataclass(frozen=True)
class Subject:
    """What is checked: `aggregator`, called with what it `takes`, "gramian" or "jacobian"."""

    aggregator: Any
    takes: str
    name: str

    @property
    def remembers(self) -> bool:
        """True if calls may depend on earlier ones: it has a method `reset`."""
        return callable(getattr(self.aggregator, "reset", None))

    def update(self, J: Tensor, draw: int, past: Sequence[Tensor] = ()) -> Update:
        """`A(J)`, by a fresh copy of the aggregator that saw `past` before, its random numbers fixed by `draw`."""
        with self.session(draw, past) as call:
            return call(J)

    def draws(self, J: Tensor, draw: int, past: Sequence[Tensor] = ()) -> bool:
        """True if the aggregator takes random numbers to compute `A(J)`."""
        fresh = self._started(draw)
        before = _random_states(fresh)
        for matrix in (*past, J):
            self._call(fresh, matrix)
        return _random_states(fresh) != before

    @contextmanager
    def session(self, draw: int, past: Sequence[Tensor] = ()) -> Iterator[Call]:
        """Several calls of one fresh copy, which may remember; random numbers start from `draw` and go on."""
        fresh = self._started(draw)
        for matrix in past:
            self._call(fresh, matrix)
        yield lambda J: self._call(fresh, J)

    def _started(self, draw: int) -> Any:
        """A copy, and `draw` as the seed of torch, numpy, random and the torch generators that the copy holds."""
        fresh = _copied(self.aggregator)
        for generator in (torch.default_generator, *_generators(fresh)):
            generator.manual_seed(draw)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(draw)
        np.random.seed(draw)
        random.seed(draw)
        return fresh

    def _call(self, fresh: Any, J: Tensor) -> Update:
        norms = J.double().norm(dim=1)
        if self.takes == "jacobian":
            y = self._checked(_aggregate_of(fresh), [J], J.shape[1], "n", "gramian")
            return Update(y, float(y.norm() + norms.max()))
        inputs = [J @ J.mT]
        if getattr(fresh, "takes_losses", False):
            inputs.append(norms.to(J.dtype))
        w = self._checked(fresh, inputs, len(J), "m", "jacobian")
        return Update(J.double().mT @ w, float(w.abs() @ norms + _FLOOR * norms.max()))

    def _checked(
        self, function: Callable[..., Any], inputs: list[Tensor], length: int, name: str, other: str
    ) -> Tensor:
        """What `function` returns for copies of `inputs`, in float64, if it is a vector of the right length."""
        shape = list(inputs[0].shape)
        try:
            out = function(*(x.clone() for x in inputs))
        except Exception as error:
            raise RaisedError(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor) or out.shape != (length,):
            got = f"shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"{self.name}, called with a {self.takes.capitalize()} of shape {shape}, must return a tensor of shape"
                f" [{name}] = [{length}]; got {got}. If it is a function of the {other.capitalize()}, say"
                f" takes={other!r}"
            )
        return out.detach().double().cpu()


def as_subject(aggregator: Any, takes: str | None = None) -> Subject:
    """Decide how `aggregator` is called; the first line that fits counts.

    | given | is called as |
    |---|---|
    | `takes="gramian"` | a function of G [m, m] that returns the weights [m] |
    | `takes="jacobian"` | a function of J [m, n] that returns the update [n] (its `.aggregate` if it has one) |
    | an aggregator of gramjd | a function of G; of G and the losses where it asks for them |
    | something with a method `aggregate` | that method, a function of J |
    | an Aggregator of TorchJD | a function of J |
    | any other callable | a function of G |

    Losses, where they are asked for, are the lengths of the gradients: they are reordered and scaled with them.

    Raises:
        InputError: none of these fits, or `takes` is neither of the two words.

    >>> as_subject(lambda J: J.sum(0), takes="jacobian").takes
    'jacobian'
    """
    if isinstance(aggregator, Subject):
        return aggregator
    if takes not in (*TAKES, None):
        raise InputError(f"takes must be 'gramian', 'jacobian' or None; got {takes!r}")
    if isinstance(aggregator, type):
        raise InputError(f"got the class {aggregator.__name__}; pass an instance, {aggregator.__name__}(...)")
    if not callable(aggregator) and not callable(getattr(aggregator, "aggregate", None)):
        raise InputError(f"an aggregator is a callable or has a method aggregate(J); got {aggregator!r}")
    if takes is None:
        takes = "jacobian" if not isinstance(aggregator, Weighting) and _is_of_jacobian(aggregator) else "gramian"
    if takes == "gramian" and not callable(aggregator):
        raise InputError(f"takes='gramian' needs something that can be called with G; got {aggregator!r}")
    return Subject(aggregator, takes, _name(aggregator))


def _name(aggregator: Any) -> str:
    """Its own name or `repr`; the name of its class where that has no `repr` of its own."""
    if type(aggregator).__repr__ is object.__repr__ and not hasattr(aggregator, "__name__"):
        return type(aggregator).__name__
    return str(getattr(aggregator, "__name__", None) or repr(aggregator))


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the global random states back at the end."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _generators(aggregator: Any) -> list[torch.Generator]:
    return [value for value in getattr(aggregator, "__dict__", {}).values() if isinstance(value, torch.Generator)]


def _random_states(aggregator: Any) -> list[Any]:
    states = [generator.get_state().tolist() for generator in (torch.default_generator, *_generators(aggregator))]
    if torch.cuda.is_initialized():
        states += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    _, keys, *rest = np.random.get_state()
    return [*states, list(keys), rest, random.getstate()]


def _is_of_jacobian(aggregator: Any) -> bool:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(aggregator).__mro__}
    return callable(getattr(aggregator, "aggregate", None)) or ("torchjd", "Aggregator") in kinds


def _aggregate_of(aggregator: Any) -> Callable[..., Any]:
    method = getattr(aggregator, "aggregate", None)
    return method if callable(method) else aggregator


def _copied(aggregator: Any) -> Any:
    try:
        return copy.deepcopy(aggregator)
    except Exception as error:
        raise InputError(
            f"{aggregator!r} cannot be copied ({type(error).__name__}: {error}), and without a copy one call could"
            " change the next; pass a function that makes it and calls it"
        ) from error
