"""Checks of an optimizer's options. All of them raise InputError."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gramjd.errors import InputError


def as_number(value: object, name: str, allowed: str, ok: Callable[[float], bool]) -> float:
    """`value` as a float, if it is a number and `ok`; `allowed` says in words what `ok` checks.

    >>> as_number(1, "damping", "above 0", lambda x: x > 0)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not ok(value):
        raise InputError(f"{name} must be a number {allowed}; got {value!r}")
    return float(value)


def as_count(value: object, name: str, least: int) -> int:
    """`value`, if it is an int and no less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be an int, {least} or more; got {value!r}")
    return value


def as_choice(value: object, name: str, allowed: Sequence[str]) -> str:
    """`value`, if it is one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return value
