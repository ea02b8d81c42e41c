"""The tensors that a step reads and changes beyond its batch: of modules and of an optimizer, each in its place."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gramjd.compiled import _compilers
from gramjd.kernels.tracing import TraceError


class Place(NamedTuple):
    """Where a tensor is kept: `home[name]`, and under further names where it is shared."""

    home: MutableMapping[Any, Any]
    name: Any
    others: list[tuple[MutableMapping[Any, Any], Any]]

    @property
    def tensor(self) -> Tensor:
        """The tensor that is there now."""
        found: Tensor = self.home[self.name]
        return found

    def put(self, tensor: Tensor) -> None:
        """Keep another tensor, under all names."""
        self.home[self.name] = tensor
        for home, name in self.others:
            home[name] = tensor


class Held:
    """Parameters and buffers of a module, and the state of an optimizer of these parameters.

    Args:
        model: whose parameters are trained.
        optimizer: steps on parameters of the model, or None.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.model, self.optimizer = model, optimizer
        self.modules = list(model.modules())
        homes = [_compilers.homes_of(module) for module in self.modules]
        self.parameters = _places(parameters for parameters, _ in homes)
        self.buffers = _places(buffers for _, buffers in homes)

    @property
    def places(self) -> list[Place]:
        """Parameters, then buffers."""
        return self.parameters + self.buffers

    def state(self) -> list[Place]:
        """The tensors of the optimizer's state, which it makes at its first step."""
        if self.optimizer is None:
            return []
        homes = [self.optimizer.state[p] for p in self.stepped() if p in self.optimizer.state]
        return _places(homes)

    @contextmanager
    def same_state(self) -> Iterator[None]:
        """After the block the state of the optimizer has the entries that it had before."""
        homes = [] if self.optimizer is None else list(self.optimizer.state.values())
        before = [dict(home) for home in homes]
        try:
            yield
        finally:
            for home, was in zip(homes, before, strict=True):
                home.clear()
                home.update(was)

    def stepped(self) -> list[Tensor]:
        """The parameters that the optimizer steps on."""
        if self.optimizer is None:
            return []
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def names(self) -> list[str]:
        """The name of each parameter and buffer in the model."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        found = {id(tensor): name for name, tensor in named}
        return [found.get(id(place.tensor), str(place.name)) for place in self.places]


def _places(homes: Any) -> list[Place]:
    found: dict[int, Place] = {}
    for home in homes:
        for name, tensor in home.items():
            if not isinstance(tensor, Tensor):
                continue
            if id(tensor) in found:
                found[id(tensor)].others.append((home, name))
            else:
                found[id(tensor)] = Place(home, name, [])
    return list(found.values())


@contextmanager
def replaced(places: Sequence[Place], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within the block other tensors are kept; then the former ones again."""
    before = [place.tensor for place in places]
    try:
        for place, tensor in zip(places, tensors, strict=True):
            place.put(tensor)
        yield
    finally:
        for place, tensor in zip(places, before, strict=True):
            place.put(tensor)


@contextmanager
def unchanged(modules: Sequence[nn.Module], strict: bool = False) -> Iterator[None]:
    """After the block modules have the attributes that they had before it.

    Raises:
        TraceError: `strict`, and the block changed an attribute that is no parameter or buffer.
    """
    own = [vars(module) for module in modules]
    kept = [*own, *(value for names in own for value in names.values() if isinstance(value, dict))]
    before = [dict(names) for names in kept]
    try:
        yield
        if strict:
            _refuse_changes(modules, own, before)
    finally:
        for names, was in zip(kept, before, strict=True):
            names.clear()
            names.update(was)


def _refuse_changes(
    modules: Sequence[nn.Module], own: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]
) -> None:
    for module, names, was in zip(modules, own, before, strict=False):
        # Recurrent layers list their parameters anew where these were exchanged.
        of_torch = type(module).__module__.startswith("torch.nn.")
        for name in names.keys() | was.keys():
            if names.get(name) is not was.get(name) and not (of_torch and name.startswith("_")):
                raise TraceError(
                    f"sets `{name}` of {type(module).__name__} in every forward pass, which a graph would not do: keep "
                    "what the next step reads in a buffer, or leave the attribute out"
                )
