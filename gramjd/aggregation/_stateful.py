"""What an aggregator keeps from call to call, and how to save it, load it and forget it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._seed import as_generator
from gramjd.errors import AggregatorError


class Stateful:
    """Tensors kept by name, the generator of aggregators that draw from one of their own, the state of their parts."""

    # The names of the tensors that are kept. Those that draw and keep nothing else leave it empty.
    _names: ClassVar[tuple[str, ...]] = ()
    # How each of them belongs to the losses, in the words of `byname.KINDS`; empty where it does not.
    _aligned: ClassVar[dict[str, str]] = {}

    def __init__(self, seed: int | torch.Generator | None = None) -> None:
        """Keep nothing yet; make the generator, if it is to be one of its own."""
        self._seed, self._generator = seed, as_generator(seed)
        self._start = None if self._generator is None else self._generator.get_state()
        self._kept: dict[str, Tensor] = {}
        self._parts: dict[str, Stateful] = {}

    def _adopt(self, **parts: object) -> None:
        """Make the state of those parts (other aggregators) that have one a piece of this one's."""
        self._parts = {name: part for name, part in parts.items() if isinstance(part, Stateful)}

    @property
    def remembers(self) -> bool:
        """True if what it returns depends on earlier calls, other than by the draws of a generator."""
        return bool(self._names) or any(part.remembers for part in self._parts.values())

    def reset(self) -> None:
        """Go back to the state after construction: nothing kept, and the draws start again."""
        self._kept = {}
        if self._generator is not None and self._start is not None:
            self._generator.set_state(self._start)
        for part in self._parts.values():
            part.reset()

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that is kept, None for what is not yet there; it can be saved with `torch.save`.

        A generator of its own is part of it, torch's global one is not.
        """
        state: dict[str, Any] = {name: _copied(self._kept.get(name)) for name in self._names}
        if self._generator is not None:
            state["generator"] = self._generator.get_state()
        return state | {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            AggregatorError: other names than those of `state_dict`, or values that are no tensors.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise AggregatorError(
                f"the state of {type(self).__name__} has {_listed(expected)}; got {_listed(set(state))}: load what"
                " state_dict() of the same aggregator, made with the same options, returned"
            )
        for name in (*self._names, *(("generator",) if self._generator is not None else ())):
            if not isinstance(state[name], Tensor) and (state[name] is not None or name == "generator"):
                raise AggregatorError(f"{name!r} in the state must be a tensor; got {state[name]!r}")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._kept = {name: state[name].detach().clone() for name in self._names if state[name] is not None}
        if self._generator is not None:
            self._generator.set_state(state["generator"].cpu())

    def _keep(self, name: str, new: Tensor, old: Tensor, source: Tensor) -> None:
        """Keep `new` under `name`; or `old` if the `source` of the new has NaN, as where no error could be raised."""
        self._kept[name] = torch.where(source.isnan().any(), old, new)

    def _recall(self, name: str, m: int, device: torch.device) -> Tensor | None:
        """What is kept under `name`, whose first dimension counts the losses; None before the first call."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        if len(kept) != m:
            raise AggregatorError(
                f"{type(self).__name__} keeps its {name} for {len(kept)} losses, but now there are {m}: call reset()"
                " first, or use one aggregator for each set of losses"
            )
        return kept.to(device, torch.float64)


def _copied(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept.clone()


def _listed(names: set[str]) -> str:
    return "no entries" if not names else "the entries " + ", ".join(map(repr, sorted(names)))
