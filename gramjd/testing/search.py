"""Look for a counterexample with hypothesis, and keep what was found in a form that can be read and pasted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, find, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, NoSuchExample
from torch import Tensor

from gramjd.errors import InputError
from gramjd.testing.strategies import Range, jacobians
from gramjd.testing.subject import RaisedError, Subject, as_subject, kept_random_state

# "J", "draw", what else the property needs, and for aggregators that remember "past", the matrices they saw before.
Case = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What every check accepts.

    Args:
        examples: matrices tried, before shrinking.
        seed: of the search; the same seed tries the same matrices.
        rows: m, or the least and the largest m; 1 to 5 losses by default, so say rows=(6, 20) to go beyond.
        columns: n, or the least and the largest n.
        tol: what is put down to rounding, relative to the size of the terms of an update; None for the square root
            of the machine epsilon of `dtype`: whoever computes from inner products keeps half of the digits.
        dtype: torch.float64 or torch.float32, of the matrices handed to the aggregator. Everything is compared in
            float64.
        takes: "gramian" or "jacobian", where it does not follow from the aggregator (see `as_subject`).
        shrink: False to stop at the first counterexample, as it was drawn: much faster.
    """

    examples: int = 100
    seed: int = 0
    rows: Range = (1, 5)
    columns: Range = (1, 5)
    tol: float | None = None
    dtype: torch.dtype = torch.float64
    takes: str | None = None
    shrink: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not isinstance(self.examples, int) or self.examples < 1:
            raise InputError(f"examples must be an int, 1 or more; got {self.examples!r}")
        if self.dtype not in (torch.float64, torch.float32):
            raise InputError(f"dtype must be torch.float64 or torch.float32; got {self.dtype}")
        if self.tol is not None and not 0 < self.tol < math.inf:
            raise InputError(f"tol must be a positive number, or None; got {self.tol!r}")

    @property
    def allowed(self) -> float:
        """The relative error that is put down to rounding."""
        return math.sqrt(torch.finfo(self.dtype).eps) if self.tol is None else self.tol


@dataclass(frozen=True)
class Measured:
    """How far a case is from the property.

    Args:
        ratio: the violation over the one that is allowed: more than 1 is a counterexample.
        text: what is violated and by how much.
        shown: values that go with the matrix, by name.
    """

    ratio: float
    text: str
    shown: Mapping[str, Tensor] = field(default_factory=dict)


Measure = Callable[[Subject, Case, float], Measured]


@dataclass(frozen=True)
class Counterexample:
    """A case for which the property does not hold.

    Args:
        text: what is violated and by how much.
        J: the Jacobian [m, n].
        given: what else belongs to the case, by name: scales, an order, the matrices seen before.
        updates: what came of it, by name, each [n].
        seed: what torch, numpy and random were seeded with before each call, if the aggregator draws; else None.
    """

    text: str
    J: Tensor
    given: Mapping[str, Any]
    updates: Mapping[str, Tensor]
    seed: int | None

    def lines(self) -> list[str]:
        """Lines that can be pasted: the case as assignments, the updates as comments."""
        lines = [f"torch.manual_seed({self.seed})  # before each call"] if self.seed is not None else []
        lines += [f"{name} = {as_code(value)}" for name, value in {"J": self.J, **self.given}.items()]
        return lines + [f"# {name}: {_short(y)}" for name, y in self.updates.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {"J": self.J, **self.given, **self.updates}
        return {"text": self.text, "seed": self.seed, **{name: _plain(value) for name, value in values.items()}}


@dataclass(frozen=True)
class Result:
    """What a search for a counterexample came to.

    Args:
        name: of the property.
        aggregator: its name.
        examples: matrices tried, those of the shrinking included.
        counterexample: None if none was found.
    """

    name: str
    aggregator: str
    examples: int
    counterexample: Counterexample | None

    @property
    def holds(self) -> bool:
        """No counterexample was found."""
        return self.counterexample is None

    def __bool__(self) -> bool:
        """The same, so that a result can be asserted."""
        return self.holds

    def __str__(self) -> str:
        """One line; below it the counterexample."""
        if self.counterexample is None:
            return f"{self.name:<33} holds  ({self.examples} matrices)"
        head = f"{self.name:<33} FAILS  {self.counterexample.text}"
        return "\n".join([head, *(f"    {line}" for line in self.counterexample.lines())])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = None if self.counterexample is None else self.counterexample.to_dict()
        return {"holds": self.holds, "examples": self.examples, "counterexample": found}


def as_code(value: Any) -> str:
    """A tensor (or a plain value) as Python.

    >>> as_code(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    'torch.tensor([[1.0, -2.0]], dtype=torch.float64)'
    """
    if isinstance(value, Tensor):
        return f"torch.tensor({value.tolist()}, dtype={value.dtype})"
    return f"[{', '.join(map(as_code, value))}]" if isinstance(value, list) else repr(value)


def search(
    name: str,
    aggregator: Any,
    cases: Callable[[Options], st.SearchStrategy[Case]],
    measure: Measure,
    options: Options,
    first: Sequence[Case] = (),
) -> Result:
    """Try `options.examples` cases, of them `first` (half at most); shrink the first counterexample and return it."""
    subject = as_subject(aggregator, options.takes)
    strategy = cases(options).flatmap(_with_past) if subject.remembers else cases(options)
    tried = 0
    found: list[tuple[Case, Measured]] = []

    def fails(case: Case) -> bool:
        nonlocal tried
        tried += 1
        measured = _measured(measure, subject, case, options.allowed)
        if measured.ratio > 1:
            found.append((case, measured))
        return measured.ratio > 1

    with kept_random_state():
        failed = any(map(fails, first[: options.examples // 2]))
        try:
            if options.shrink or not failed:
                find(strategy, fails, settings=_settings(options, tried), random=Random(options.seed))
        except NoSuchExample:
            pass
        except Flaky:
            pass  # it did not fail twice in the same way; the last failure is as good a witness as any
        if not found:
            return Result(name, subject.name, tried, None)
        return Result(name, subject.name, tried, _counterexample(subject, *found[-1]))


def _with_past(case: Case) -> st.SearchStrategy[Case]:
    m, n = case["J"].shape
    matrices = jacobians(m, n, dtype=case["J"].dtype, near_singular=False)
    return st.lists(matrices, max_size=2).map(lambda past: {**case, "past": past})


def _counterexample(subject: Subject, case: Case, measured: Measured) -> Counterexample:
    past = case.get("past", [])
    given = {"past": past} if past else {}
    given |= {key: value for key, value in case.items() if key not in ("J", "draw", "past")}
    try:
        seed = case["draw"] if subject.draws(case["J"], case["draw"], past) else None
    except RaisedError:
        seed = None
    return Counterexample(measured.text, case["J"], given, measured.shown, seed)


def _measured(measure: Measure, subject: Subject, case: Case, allowed: float) -> Measured:
    try:
        measured = measure(subject, case, allowed)
    except RaisedError as error:
        return Measured(math.inf, f"{error}. If only some shapes are allowed, say rows=(least, largest)")
    return Measured(math.inf, measured.text, measured.shown) if math.isnan(measured.ratio) else measured


def _settings(options: Options, tried: int) -> settings:
    phases = (Phase.generate, Phase.shrink)
    return settings(
        max_examples=options.examples - tried,
        database=None,
        deadline=None,
        derandomize=False,
        verbosity=Verbosity.quiet,
        phases=phases if options.shrink else phases[:1],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def _short(y: Tensor) -> str:
    return "[" + ", ".join(f"{x:.6g}" for x in y.tolist()) + "]"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value
