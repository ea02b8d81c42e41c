"""Errors for names and arguments that are others in a related library, or that a newcomer guesses."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def foreign_words(words: Mapping[str, str], name: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: TypeError with the sentence in `words` for a keyword that the function does not have.

    Signature, docstring and annotations stay those of the function. A word that the function accepts is let through.

    Args:
        words: keyword to a sentence that says what to write instead.
        name: what the message calls the function; default: its own name.

    Raises:
        TypeError: at a call with one of the words.

    >>> @foreign_words({"features": "leave it out"})
    ... def step(losses, shared=None):
    ...     return losses
    >>> step(1, shared=2)
    1
    >>> step(1, features=2)
    Traceback (most recent call last):
    TypeError: step() has no argument 'features': leave it out
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return function
        unknown = {word: hint for word, hint in words.items() if word not in parameters}
        called = name or function.__name__

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for word in kwargs:
                if word in unknown:
                    raise TypeError(f"{called}() has no argument {word!r}: {unknown[word]}")
            return function(*args, **kwargs)

        return checked

    return decorate


_PARAMETERS = "the parameters are inputs=: a module, or tensors"
_WEIGHTS = "fixed weights are an aggregator, gramjd.Constant([1.0, 2.0])"
_PREFERENCE = "it belongs to the aggregator, as in UPGrad(preference=[1.0, 2.0])"
_CHUNKS = "rows are cut to fit memory_budget=, in bytes"

# For `gramian`.
GRAMIAN_WORDS = {
    "batch_dim": "leave it out: the batch axis is read from the graph",
    "model": _PARAMETERS,
    "parallel_chunk_size": _CHUNKS,
    "parameters": _PARAMETERS,
    "params": _PARAMETERS,
}

# For `mtl_backward`. TorchJD takes the activations between trunk and heads, and the parameters of each.
MTL_WORDS = {
    "features": "the graph says what the losses share; leave it out, or name the shared parameters with shared=",
    "shared_params": "the shared parameters are shared=; without it they are all that several losses reach",
    "tasks_params": "leave it out: every parameter that is not shared gets the gradient of its own loss",
    "heads": "leave it out: every parameter that is not shared gets the gradient of its own loss",
    "inputs": "the shared parameters are shared=; all others get the gradient of their own loss",
    "parallel_chunk_size": _CHUNKS,
    "preference": _PREFERENCE,
    "trunk": "the shared parameters are shared=; without it they are all that several losses reach",
    "weights": _WEIGHTS,
}

# For `gram_backward`.
STEP_WORDS = GRAMIAN_WORDS | {
    "features": "leave it out; for heads on a shared trunk there is gramjd.mtl_backward",
    "norm_eps": "leave it out: no result depends on the scale of the gradients. UPGrad's regularisation is ridge=",
    "pref_vector": _PREFERENCE,
    "preference": _PREFERENCE,
    "weights": _WEIGHTS,
    "shared_params": "for heads on a shared trunk there is gramjd.mtl_backward(losses, aggregator, shared=)",
}

# For the constructors of aggregators.
WEIGHTING_WORDS = {
    "pref_vector": "the weights of the losses are preference=",
    "norm_eps": "leave it out: no result depends on the scale of the gradients. UPGrad's regularisation is ridge=",
    "reg_eps": "what is added to the diagonal of G, in units of its trace, is ridge= of UPGrad, 0 by default",
    "scale_mode": "it is scale=",
    "n_byzantine": "it is byzantine=",
    "n_selected": "it is selected=",
}

# Public names that are one package further down.
INSIDE = {
    "aggregation": ("Coordinatewise", "LossWeighting", "Weighting"),
    "optim": ("SPRING", "LevenbergMarquardt"),
    "profiling": ("CsvWriter", "FunctionWriter", "GramMonitor", "TensorBoardWriter", "profile_step"),
    "scalarization": ("DWA", "FAMO", "GeometricMean", "GradNorm", "SmoothTchebycheff", "Uncertainty"),
}

_STEP = "gramjd.gram_backward(losses, aggregator) fills .grad in one call"

# For `gramjd` itself: what other names stand for here.
NAMES = {
    "Aggregator": "any function from G [m, m] to weights [m] is one; a base class is gramjd.aggregation.Weighting",
    "Engine": "gramjd.gramian(losses) needs no engine",
    "autogram": "gramjd.gramian(losses) needs no engine",
    "autojac": _STEP,
    "backward": _STEP,
    "check_aggregator": "it is gramjd.testing.check_aggregator: import gramjd.testing",
    "gramian_backward": _STEP,
    "jac_to_grad": _STEP,
    "jacobian": "it is never formed; gramjd.gramian(losses) has its inner products",
    "monitor": "it is gramjd.profiling.GramMonitor",
    "mtl": "gramjd.mtl_backward(losses, aggregator) is for tasks on a shared trunk",
    "step": _STEP,
    "testing": "it needs the extra testing: import gramjd.testing",
    **{name: f"it is gramjd.{package}.{name}" for package, names in INSIDE.items() for name in names},
}

# For packages of `gramjd`: what TorchJD and others call what is there.
PLACES = {
    "aggregation": {"Aggregator": NAMES["Aggregator"]},
    "optim": {
        "GaussNewton": "it is an aggregator, gramjd.GaussNewton; its optimizer is LevenbergMarquardt",
        "LM": "it is LevenbergMarquardt",
    },
    "scalarization": {"UW": "it is Uncertainty", "RLW": "it is RandomLossWeights", "STCH": "it is SmoothTchebycheff"},
}
