"""Every error and warning that gramjd raises on purpose."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PAGE = "docs/errors.md"  # in the repository; with a place for each class


def place_of(kind: type) -> str:
    """Where the page tells causes and cures of an error or a warning: of the nearest class that is this library's.

    >>> place_of(type("MyError", (LossError,), {"__module__": "mine"}))
    'docs/errors.md#gramjd.errors.LossError'
    """
    own = next(one for one in kind.__mro__ if one.__module__ in ("gramjd.errors", "gramjd.extras"))
    return f"{PAGE}#{own.__module__}.{own.__name__}"


class GramjdError(Exception):
    """Base of all errors raised on purpose by this library; catch it to catch them all."""

    def __init__(self, *args: object, **options: Any) -> None:
        """As of any exception, with a note that a traceback shows: where causes and cures are told."""
        super().__init__(*args, **options)
        self.add_note(f"Causes and cures: {place_of(type(self))}, in the repository of gramjd.")


class LossError(GramjdError, ValueError):
    """The losses cannot be descended on: wrong shape or dtype, no graph, or not finite."""


class InputError(GramjdError, ValueError):
    """Another argument (parameters, options, data) is not one of those allowed."""


class GraphError(GramjdError, RuntimeError):
    """The autograd graph cannot be walked: freed, edited in place, or holding a node that cannot be called."""


class RankError(GramjdError, RuntimeError):
    """A rank of a process group has failed, or the ranks disagree; every rank raises the same."""


# What PyTorch says of a graph, and what is to be done.
_OF_GRAPHS = {
    "backward through the graph a second time": "the graph was freed by an earlier backward pass: compute the losses "
    "anew, or pass retain_graph=True to all passes but the last",
    "modified by an inplace operation": "a tensor that the graph needs was modified in place after it was used: use "
    "the operation that returns a new tensor",
    "backward an extra time": "a region under a selective checkpoint can be gone through once. One gram_backward "
    "does that, where it can keep what it found (no hooks on tensors, no sparse embeddings, one process, within the "
    "memory budget); elsewhere use torch.utils.checkpoint.checkpoint without a policy, which computes the region again "
    "for each pass",
    "donated buffers": "a module that torch.compile compiled for several batch sizes frees what it saved after one "
    'backward pass, and a step needs two. Compile it with torch.compile(model, backend="gramjd"), or with '
    "torch.compile(model, dynamic=False), or call the module that is not compiled (`model._orig_mod`). Do not switch "
    "torch._functorch.config.donated_buffer off where something was compiled before: compiled code is taken from a "
    "cache, and its gradients are wrong then",
}


@contextmanager
def graph_errors() -> Iterator[None]:
    """Raise what PyTorch says of a freed or edited graph as a GraphError that says what to do."""
    try:
        yield
    except GramjdError:
        raise
    except RuntimeError as error:
        for words, advice in _OF_GRAPHS.items():
            if words in str(error):
                raise GraphError(f"{advice}. PyTorch says: {error}") from error
        raise


class AggregatorError(GramjdError, ValueError):
    """An aggregator got a matrix or a vector that it cannot use, or could not solve for its weights."""


class BudgetError(GramjdError, MemoryError):
    """A step cannot be done within the memory budget that was given."""


class BackendError(GramjdError, RuntimeError):
    """The backend asked for cannot run: a package missing or too old, tensors of a device or dtype without a kernel."""


class CompileError(GramjdError, RuntimeError):
    """A compiled step computes something else than the eager one."""


class RuleError(GramjdError, RuntimeError):
    """A rule for a node returned something that breaks its contract, or was registered wrongly."""


class DenseRowsWarning(UserWarning):
    """From some node on each loss needs a row of its own: right but slower. Given once per kind of node."""


class InputsWarning(UserWarning):
    """Leaves that are no parameters were left out of the Gramian, as no inputs were named."""


class FallbackWarning(UserWarning):
    """Something that was asked for is done in another way: right, but slower."""


class RanksWarning(UserWarning):
    """There are several processes, and a step has the losses of one of them alone."""


# This package, and what keeps a compiler from looking into its functions.
_INSIDE = ("gramjd.", "torch._dynamo.")


# Actions of filters that show a warning again only elsewhere; what was shown under one of them, and where.
ONCE = ("default", "module", "once")
_given: set[tuple[str, type[Warning], str, int]] = set()


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line outside of this package that led here; the message ends with where causes and cures are told.

    Once per line and message, unless a filter says "always" or "error". (Python's own memory of that is lost whenever
    anything leaves `warnings.catch_warnings`, as each step does that uses vmap.)
    """
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_INSIDE):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    text = f"{message} [{place_of(category)}]"
    if frame is not None:
        key = (text, category, frame.f_code.co_filename, frame.f_lineno)
        if _action(text, category, frame.f_globals.get("__name__", ""), frame.f_lineno) in ONCE:
            if key in _given:
                return
            _given.add(key)
    warnings.warn(text, category, stacklevel=level)


def _action(text: str, category: type[Warning], module: str, line: int) -> str:
    """What Python's filters say of a warning: those of its start hold names, later ones patterns."""

    def fits(pattern: Any, name: str) -> bool:
        return pattern is None or (pattern == name if isinstance(pattern, str) else pattern.match(name) is not None)

    for action, words, kind, where, at in warnings.filters:
        if issubclass(category, kind) and fits(words, text) and fits(where, module) and at in (0, line):
            return action
    return "default"


def in_bytes(number: float) -> str:
    """A number of bytes in words.

    >>> in_bytes(800), in_bytes(3 << 20)
    ('800 B', '3.0 MiB')
    """
    power = 0
    while number >= 1024 and power < 4:
        number, power = number / 1024, power + 1
    return f"{number:.1f} {'KMGT'[power - 1]}iB" if power else f"{number:.0f} B"
