"""Checks of options: one wording for all, each with the error of the part that asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gramjd.errors import GramjdError, InputError


def as_number(
    value: object, name: str, allowed: str, ok: Callable[[float], bool], error: type[GramjdError] = InputError
) -> float:
    """`value` as a float, if it is a number and `ok`; `allowed` says in words what `ok` checks.

    >>> as_number(1, "rate", "above 0", lambda x: x > 0)
    1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not ok(value):
        raise error(f"{name} must be a number {allowed}; got {value!r}")
    return float(value)


def as_count(value: object, name: str, least: int, error: type[GramjdError] = InputError) -> int:
    """`value`, if it is an int and no less than `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(f"{name} must be an int, {least} or more; got {value!r}")
    return value


def as_choice(value: object, name: str, allowed: Sequence[str], error: type[GramjdError] = InputError) -> str:
    """`value`, if it is one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return value
