"""Models sharded by `fully_shard`: their parameters are gathered as a walk comes to a module, and freed as it leaves.

In the graph stand the gathered parameters, whose memory is mostly freed by now. A walk gathers and frees them as a
backward pass does, in the order that the graph prescribes, and so all ranks do it alike; it reduces nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from gramjd.engine import _fsdp
from gramjd.errors import GraphError, InputError

if TYPE_CHECKING:
    from gramjd.engine.graph import Graph


class Sharded:
    """The sharded modules that a graph goes through.

    Attributes:
        shards: for each leaf of the graph that is a gathered parameter, by its id, the parameter that users see.
        before: called before parameters are gathered, such as to agree with other ranks.
    """

    def __init__(self, states: Sequence[_fsdp.State], leaves: Sequence[Tensor]) -> None:
        self.states = states
        self.groups = [group for state in states for group in _fsdp.groups(state)]
        pairs = [pair for group in self.groups for pair in _fsdp.parameters(group)]
        self._whole = {id(shard): whole for shard, whole in pairs}
        met = {id(leaf) for leaf in leaves}
        self.shards = {id(whole): shard for shard, whole in pairs if id(whole) in met}
        self.before: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, leaves: Sequence[Tensor]) -> Sharded | None:
        """The sharded modules of the process, if there are any; `leaves` are those of a graph."""
        found = _fsdp.states()
        return cls(found, leaves) if found else None

    def leaves_for(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs as they stand in the graph."""
        found = copy.copy(inputs) if isinstance(inputs, list) else list(inputs)
        found[:] = [self._whole.get(id(t), t) for t in inputs]
        return found

    def met(self, graph: Graph) -> bool:
        """Returns True if a graph goes through one of the modules.

        Raises:
            GraphError: it cannot be told when the parameters of one are needed.
        """
        wanted = {id(t) for t in graph.targets.values()}
        seen = {id(group) for states in graph.hooks.gathers.values() for s in states for group in _fsdp.groups(s)}
        for group in self.groups:
            used = [whole for _, whole in _fsdp.parameters(group) if id(whole) in self.shards and id(whole) in wanted]
            if used and id(group) not in seen:
                raise GraphError(
                    f"a parameter of shape {tuple(used[0].shape)} is sharded by FSDP, and no hook of FSDP was found on "
                    "the outputs of its module: an edit in place has dropped it (clone the output), a hook that was "
                    "registered inside the module hides it (register it outside), or the losses are made of "
                    "derivatives, which FSDP cannot differentiate again"
                )
        return bool(seen)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Returns True if one of these is a sharded parameter, gathered or not."""
        return any(id(t) in self._whole or id(t) in self.shards for t in tensors)

    def check_ranks(self, given: Sequence[int]) -> None:
        """Raise InputError unless the gradients of the graph's parameters are summed over these ranks."""
        for group in self._used():
            count, among = _fsdp.ranks(group)
            if count != len(given) or not set(among) <= set(given):
                raise InputError(
                    f"the model is sharded by FSDP over {count} ranks, such as {among}, but `group` has the ranks "
                    f"{list(given)}: pass the group of the mesh that was given to fully_shard"
                )

    def divisor(self) -> float:
        """What FSDP divides the sums of gradients by.

        Raises:
            InputError: parameters differ in it.
        """
        found = {_fsdp.divisor(group) for group in self._used() or self.groups}
        if len(found) > 1:
            raise InputError(
                f"gradients of sharded modules are divided by different numbers, {sorted(found)}: call "
                "set_gradient_divide_factor alike on all of them"
            )
        return found.pop()

    def _used(self) -> list[_fsdp.Group]:
        return [g for g in self.groups if any(id(whole) in self.shards for _, whole in _fsdp.parameters(g))]

    @contextmanager
    def gathering(self, graph: Graph) -> Iterator[Gathering]:
        """Within the block a walk may gather parameters; afterwards all is as before."""
        with _fsdp.quiet(self.states):
            gathering = Gathering(graph, self.before)
            try:
                yield gathering
            finally:
                gathering.free_all()


class Gathering:
    """What to gather before a node is visited, and to free after it."""

    def __init__(self, graph: Graph, before: Callable[[], object]) -> None:
        self._before = before
        self._needed: dict[int, list[_fsdp.Group]] = {}
        self._left: dict[int, _fsdp.Group] = {}
        for (node, _), states in graph.hooks.gathers.items():
            there = self._needed.setdefault(graph.number[node], [])
            there += [group for state in states for group in _fsdp.groups(state) if group not in there]
        for node, name in graph.names.items():
            if name == _fsdp.LEAVING:
                self._left[graph.number[node]] = node.param_group
        self._mine: list[_fsdp.Group] = []

    def enter(self, n: int) -> None:
        """A walk comes to node n."""
        for group in self._needed.get(n, ()):
            if not _fsdp.is_gathered(group):
                self._before()
                _fsdp.gather(group)
                self._mine.append(group)

    def leave(self, n: int) -> None:
        """It has left node n."""
        group = self._left.get(n)
        if group in self._mine:
            self._mine.remove(group)
            _fsdp.free(group)

    def free_all(self) -> None:
        """Free what is still gathered."""
        while self._mine:
            _fsdp.free(self._mine.pop())
