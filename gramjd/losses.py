"""What may be handed in as losses and inputs, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gramjd.engine._torch import is_spread
from gramjd.engine.graph import Selected
from gramjd.errors import InputError, LossError
from gramjd.kernels.tracing import tracing
from gramjd.options import as_number

Given = Tensor | Sequence[Tensor]
Losses = Given | Mapping[str, Tensor | None]
Inputs = Tensor | torch.nn.Module | Iterable[Tensor] | Mapping[str, Tensor] | None
DTYPES = (torch.float32, torch.float64)


def as_given(losses: Losses) -> Tensor | list[Tensor]:
    """A tensor as it is; anything else as a list, so that what can be gone through once is.

    Of a mapping from names those losses that are there; None stands for one that this batch has not.
    """
    if isinstance(losses, Tensor):
        return losses
    if isinstance(losses, Mapping):
        return [loss for loss in losses.values() if loss is not None]
    if isinstance(losses, (set, frozenset)):
        raise LossError("losses is a set, whose order is not defined; pass a list or a tuple")
    if isinstance(losses, torch.nn.Module):
        raise LossError(
            f"losses is a {type(losses).__name__}, a module; expected what is computed with it, a tensor or a sequence "
            "of tensors"
        )
    if not isinstance(losses, Iterable) or isinstance(losses, (str, bytes)):
        raise LossError(f"losses is a {type(losses).__name__}; expected a tensor or a sequence of tensors")
    return list(losses)


def as_names(losses: Losses) -> tuple[str, ...] | None:
    """The name of each loss, if they have names; elements of a tensor that holds several are counted.

    >>> as_names({"depth": torch.ones(()), "pixels": torch.ones(2), "normals": None})
    ('depth', 'pixels[0]', 'pixels[1]')
    """
    if not isinstance(losses, Mapping):
        return None
    found: list[str] = []
    for name, loss in losses.items():
        if not isinstance(name, str):
            raise LossError(f"a loss is called {name!r}; names must be strings")
        if isinstance(loss, Tensor):
            found += [name] if loss.numel() == 1 else [f"{name}[{k}]" for k in range(loss.numel())]
    return tuple(found)


def as_losses(losses: Losses, finite: bool = True) -> list[Tensor]:
    """The losses as a list of tensors that can be differentiated; `finite`: none of them may be NaN or infinite."""
    keys = [key for key, loss in losses.items() if loss is not None] if isinstance(losses, Mapping) else None
    losses = as_given(losses)
    found = [losses] if isinstance(losses, Tensor) else list(losses)
    for place, loss in enumerate(found):
        which = "losses" if isinstance(losses, Tensor) else f"losses[{place if keys is None else keys[place]!r}]"
        _check(which, loss, finite)
    if not sum(loss.numel() for loss in found):
        raise LossError("there are no losses: got an empty tensor or sequence; give at least one loss")
    devices = {loss.device for loss in found}
    if len(devices) > 1:
        raise LossError(f"losses lie on several devices {sorted(map(str, devices))}: move them to one")
    return [loss for loss in found if loss.numel()]


def as_named(losses: Losses, finite: bool = True) -> tuple[tuple[str, ...] | None, Given, list[Tensor]]:
    """The names of the losses, the losses as they are without names, and as a list of checked tensors."""
    kept = losses if isinstance(losses, Mapping) else as_given(losses)
    names, found = as_names(kept), as_losses(kept, finite)
    return names, as_given(kept), found


def as_tasks(losses: Losses) -> list[Tensor]:
    """The losses of tasks as a list of checked tensors: one scalar per task."""
    kept = losses if isinstance(losses, Mapping) else as_given(losses)
    found = as_losses(kept)
    check_tasks(as_given(kept), found)
    return found


def check_tasks(losses: Losses, found: Sequence[Tensor]) -> None:
    """Raise unless there is one scalar loss per task."""
    single = isinstance(losses, Tensor)
    if any(loss.ndim > 1 if single else loss.numel() > 1 for loss in found):
        sizes = ", ".join(str(tuple(loss.shape)) for loss in found)
        raise LossError(
            f"each task needs one scalar loss, as a tensor [m] or a sequence of m scalars; got {sizes}: reduce over "
            "the samples, or use gram_backward"
        )


def _check(which: str, loss: Tensor, finite: bool) -> None:
    if not isinstance(loss, Tensor):
        named = ": losses by name are a dictionary" if isinstance(loss, tuple) else ""
        raise LossError(f"{which} is a {type(loss).__name__}; expected a tensor or a sequence of tensors{named}")
    if is_spread(loss):
        raise LossError(f"{which} is a DTensor, spread over processes: pass {which}.full_tensor()")
    if loss.is_complex():
        raise LossError(f"{which} is complex ({loss.dtype}); a loss must be real: take its modulus or real part")
    if not loss.is_floating_point():
        raise LossError(f"{which} has dtype {loss.dtype}; a loss must be floating point")
    if not loss.requires_grad:
        raise LossError(
            f"{which} does not require grad: compute it from parameters with requires_grad=True, outside "
            "torch.no_grad(), derivatives with create_graph=True; torch.tensor(losses) cuts them off, a list does not"
        )
    if loss.is_meta:
        raise LossError(f"{which} is on the meta device, which holds no numbers: compute it on a CPU or a GPU")
    if finite and not all_finite(loss.detach()):
        raise LossError(f"{which} has NaN or infinite elements: nothing was computed; check the forward pass")


def all_finite(values: Tensor) -> bool:
    """Returns True if all are finite, and while a trace is made or a CUDA graph recorded, which can give no answers."""
    if tracing() is not None:
        return True
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    # A sum is finite only if all of them are; one that is not may have overflowed.
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def as_inputs(inputs: Inputs, name: str = "inputs") -> Selected | None:
    """The inputs as a list of distinct tensors; None for all leaves."""
    if inputs is None:
        return None
    if isinstance(inputs, torch.nn.Module):
        return _parameters_of(inputs, name)
    if isinstance(inputs, Mapping):
        inputs = inputs.values()
    if not isinstance(inputs, Iterable):
        raise InputError(
            f"`{name}` is a {type(inputs).__name__}; expected a module, a tensor, several tensors, or a mapping from "
            "names to them"
        )
    found = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not found:
        raise InputError(f"`{name}` is empty: give at least one tensor, or leave it out for all leaves")
    for place, tensor in enumerate(found):
        if not isinstance(tensor, Tensor):
            pairs = ": pairs of name and tensor are a dictionary" if isinstance(tensor, tuple) else ""
            raise InputError(f"{name}[{place}] is a {type(tensor).__name__}; expected a tensor{pairs}")
        if not tensor.requires_grad:
            raise InputError(
                f"{name}[{place}] (shape {tuple(tensor.shape)}) does not require grad: set requires_grad, or pass the "
                "module, of which frozen parameters are left out"
            )
    return Selected({id(t): t for t in found}.values())


def _parameters_of(module: torch.nn.Module, name: str) -> Selected:
    """Those parameters of a module that are trained; those that no loss reaches are left out, as optimizers do."""
    found = Selected(p for p in module.parameters() if p.requires_grad)
    found.optional = True
    if not found:
        raise InputError(f"`{name}` is a {type(module).__name__} without a parameter that requires grad")
    return found


def names_of(inputs: Inputs) -> dict[int, str]:
    """The name of each input by its id, where names were given."""
    if isinstance(inputs, torch.nn.Module):
        inputs = dict(inputs.named_parameters())
    return {id(t): name for name, t in inputs.items()} if isinstance(inputs, Mapping) else {}


def as_budget(memory_budget: int | None) -> int | None:
    """A number of bytes, or None for the default."""
    whole = isinstance(memory_budget, int) and not isinstance(memory_budget, bool)
    if memory_budget is not None and not (whole and memory_budget >= 0):
        raise InputError(f"memory_budget is {memory_budget!r}; expected a whole number of bytes, such as 2 * 2**30")
    return memory_budget


def as_scale(scale: float) -> float:
    """The number that losses were multiplied by, above 0 and finite."""
    return as_number(scale, "scale", "that is finite and above 0", lambda x: 0 < x < math.inf)


def as_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """What a Gramian may be accumulated in: products of gradients need the range and digits of float32 at least."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected torch.float32, torch.float64 or None")
    return dtype
