"""Tapes: straight-line programs over the nodes of a graph, written once and run on every graph of that structure.

A tape is a list of

    read     a tensor that a node saved; another shape or stride than before ends the replay
    compare  a number that a node saved; another one than before ends the replay
    call     a node's own backward
    apply    a torch function
    view     the same memory, read differently

over numbered registers, and is compiled to Python: between the operations nothing is looked up any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gramjd.engine.graph import Node

Tape = Callable[[Sequence[Node], Sequence[Tensor]], Generator[list[Tensor], Sequence[Tensor], None]]
Signature = tuple[Any, ...]


class MismatchError(Exception):
    """A graph that looked like the recorded one turned out to differ."""


@dataclass(frozen=True)
class Register:
    """Stands for a tensor in recorded arguments."""

    number: int


class Replay:
    """A tape that runs on the nodes of another graph, given in the order of `Graph.edges`."""

    def __init__(self, tape: Tape, nodes: Sequence[Node]) -> None:  # noqa: D107
        self._tape, self._nodes = tape, nodes
        self._running: Generator[list[Tensor], Sequence[Tensor], None] | None = None

    def run(self, *given: Tensor) -> list[Tensor]:
        """The next part; the last one returns what was asked for.

        Raises:
            MismatchError: the graph differs; what was given may have been written to.
        """
        if self._running is not None:
            return self._running.send(given)
        self._running = self._tape(self._nodes, given)
        return next(self._running)


class _Line(NamedTuple):
    """A statement, the registers in it, and those that it fills; a `view` of memory is dropped if nobody uses it."""

    text: str
    used: frozenset[int]
    outs: tuple[int, ...]
    view: bool = False


@dataclass
class Script:
    """Writes a tape, an operation at a time."""

    returned: list[int] = field(default_factory=list)
    _lines: list[_Line] = field(default_factory=list)
    _registers: int = 0
    # What the program calls by a name: functions, and constants that cannot be written down.
    _named: dict[str, Any] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    # Views: the register that holds their memory, and how far they lie from its beginning.
    _roots: dict[int, tuple[int, int]] = field(default_factory=dict)
    # The register of each: of which memory, in which sizes and strides, how far from its beginning.
    _views: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Operations so far."""
        return len(self._lines)

    def new_register(self) -> int:
        """A number that was not used yet."""
        self._registers += 1
        return self._registers - 1

    # -- operations --------------------------------------------------------------------------------------------------

    def begin(self, given: Sequence[tuple[int, Signature]]) -> None:
        """A part that is given tensors: their registers and signatures."""
        names = "".join(f"r{number}, " for number, _ in given)
        if self._lines:
            self._line("given = yield []")
        self._line(f"{names}= given", outs=[number for number, _ in given])
        for number, expected in given:
            self._line(f"{self._name(_check)}(r{number}, {self._name(expected)})", {number})

    def read(self, place: int, attribute: str, expected: Signature, out: int) -> None:
        """A tensor that a node saved."""
        self._line(f"r{out} = nodes[{place}].{attribute}", outs=[out])
        self._line(f"{self._name(_check)}(r{out}, {self._name(expected)})", {out})

    def compare(self, place: int, attribute: str, expected: Any) -> None:
        """Something else that a node saved."""
        self._line(f"{self._name(_compare)}(nodes[{place}].{attribute}, {self._name(expected)})")

    def call(
        self,
        place: int,
        run: Callable[[Node, Any], Any],
        values: list[Any],
        expected: list[Signature | None],
        outs: list[int | None],
    ) -> None:
        """A node's own backward."""
        used: set[int] = set()
        arguments = f"{self._name(run)}, nodes[{place}], {self._text(values, used)}, {self._name(expected)}"
        self._line(f"{_targets(outs)}{self._name(_call)}({arguments})", used, outs)

    def apply(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        named: dict[str, Any],
        outs: list[int | None],
        single: bool,
    ) -> None:
        """A torch function."""
        used: set[int] = set()
        texts = [self._text(a, used) for a in arguments] + [f"{k}={self._text(v, used)}" for k, v in named.items()]
        target = f"r{outs[0]} = " if single else _targets(outs)
        self._line(f"{target}{self._name(function)}({', '.join(texts)})", used, outs)

    def view(self, source: int, tensor: Tensor, result: Tensor) -> int:
        """The memory of `tensor`, read as `result`: its register. Views of views are taken at once, equal ones once."""
        root, offset = self._roots.get(source, (source, 0))
        if root == source:
            self._views.setdefault((root, tuple(tensor.shape), tensor.stride(), 0), root)
        offset += int(result.storage_offset()) - int(tensor.storage_offset())
        form = (root, tuple(result.shape), result.stride(), offset)
        if form not in self._views:
            out = self._views[form] = self.new_register()
            self._roots[out] = (root, offset)
            where = f"{form[1]}, {form[2]}" + (f", r{root}.storage_offset() + {offset}" if offset else "")
            self._line(f"r{out} = {self._name(torch.as_strided)}(r{root}, {where})", {root}, [out], view=True)
        return self._views[form]

    def put(self, out: int, constant: Tensor) -> None:
        """A tensor that is always the same."""
        self._line(f"r{out} = {self._name(constant)}", outs=[out])

    # -- text --------------------------------------------------------------------------------------------------------

    def _line(self, text: str, used: Iterable[int] = (), outs: Sequence[int | None] = (), view: bool = False) -> None:
        self._lines.append(_Line(text, frozenset(used), tuple([o for o in outs if o is not None]), view))

    def _name(self, value: Any) -> str:
        """A name for anything, the same for the same thing."""
        name = self._names.setdefault(id(value), f"c{len(self._names)}")
        self._named[name] = value
        return name

    def _text(self, value: Any, used: set[int]) -> str:
        kind = type(value)
        if kind is Register:
            used.add(value.number)
            return f"r{value.number}"
        if kind is tuple:
            return f"({''.join(self._text(v, used) + ', ' for v in value)})"
        if kind is list:
            return f"[{', '.join(self._text(v, used) for v in value)}]"
        if kind is dict:
            return f"{{{', '.join(f'{k!r}: {self._text(v, used)}' for k, v in value.items())}}}"
        plain = kind in (int, bool, str, type(None)) or (kind is float and math.isfinite(value))
        return repr(value) if plain else self._name(value)

    def compile(self) -> Tape:
        """The program: a generator that stops after each part, and drops every tensor after its last use."""
        needed, written = set(self.returned), []
        for line in reversed(self._lines):
            if line.view and needed.isdisjoint(line.outs):
                continue
            last = {*line.used, *line.outs} - needed
            if last:
                written.append(f"    del {', '.join(f'r{number}' for number in sorted(last))}")
            written.append(f"    {line.text}")
            needed |= line.used | set(line.outs)
        written.append("def play(nodes, given):")
        source = "\n".join([*reversed(written), f"    yield [{', '.join(f'r{number}' for number in self.returned)}]"])
        space = dict(self._named)
        exec(compile(source, "<tape>", "exec"), space)
        found: Tape = space["play"]
        return found


def _targets(outs: Sequence[int | None]) -> str:
    """What a list of results is assigned to."""
    return "".join("_, " if out is None else f"r{out}, " for out in outs) + "= " if outs else ""


def signature(tensor: Tensor) -> Signature:
    """What a recorded sequence of operations relies on, besides the numbers."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.layout


# -- what a program calls --------------------------------------------------------------------------------------------


def _check(value: Any, expected: Signature) -> None:
    if not isinstance(value, Tensor) or signature(value) != expected:
        raise MismatchError("a tensor of another shape, stride or dtype")


def _compare(value: Any, expected: Any) -> None:
    if type(value) is not type(expected) or value != expected:
        raise MismatchError("another number")


def _call(run: Callable[[Node, Any], Any], node: Node, values: Any, expected: list[Signature | None]) -> list[Any]:
    results = run(node, values)
    flat = list(results) if isinstance(results, (list, tuple)) else [results]
    if [None if result is None else signature(result) for result in flat] != expected:
        raise MismatchError("another result of a node")
    return flat
