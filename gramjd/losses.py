"""What may be handed in as losses and inputs, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gramjd.errors import InputError, LossError

Losses = Tensor | Sequence[Tensor]
Inputs = Tensor | Iterable[Tensor] | Mapping[str, Tensor] | None


def as_losses(losses: Losses) -> list[Tensor]:
    """The losses as a list of tensors that can be differentiated."""
    if not isinstance(losses, Iterable):
        raise LossError(f"losses is a {type(losses).__name__}; expected a tensor or a sequence of tensors")
    found = [losses] if isinstance(losses, Tensor) else list(losses)
    for place, loss in enumerate(found):
        which = "losses" if isinstance(losses, Tensor) else f"losses[{place}]"
        _check(which, loss)
    if not sum(loss.numel() for loss in found):
        raise LossError("there are no losses: got an empty tensor or sequence; give at least one loss")
    devices = {loss.device for loss in found}
    if len(devices) > 1:
        raise LossError(f"losses lie on several devices {sorted(map(str, devices))}: move them to one")
    return [loss for loss in found if loss.numel()]


def _check(which: str, loss: Tensor) -> None:
    if not isinstance(loss, Tensor):
        raise LossError(f"{which} is a {type(loss).__name__}; expected a tensor or a sequence of tensors")
    if loss.is_complex():
        raise LossError(f"{which} is complex ({loss.dtype}); a loss must be real: take its modulus or real part")
    if not loss.is_floating_point():
        raise LossError(f"{which} has dtype {loss.dtype}; a loss must be floating point")
    if not loss.requires_grad:
        raise LossError(
            f"{which} does not require grad: compute it from parameters with requires_grad=True, outside "
            "torch.no_grad()"
        )
    if not all_finite(loss.detach()):
        raise LossError(f"{which} has NaN or infinite elements: nothing was computed; check the forward pass")


def all_finite(values: Tensor) -> bool:
    """Whether all are finite. Not asked while a CUDA graph is recorded, which can give no answers."""
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    # A sum is finite only if all of them are; one that is not may have overflowed.
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def as_inputs(inputs: Inputs, name: str = "inputs") -> list[Tensor] | None:
    """The inputs as a list of distinct tensors; None for all leaves."""
    if inputs is None:
        return None
    if isinstance(inputs, Mapping):
        inputs = inputs.values()
    if not isinstance(inputs, Iterable):
        raise InputError(
            f"`{name}` is a {type(inputs).__name__}; expected a tensor, several, or a mapping from names to them: of a "
            "module, module.parameters()"
        )
    found = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not found:
        raise InputError(f"`{name}` is empty: give at least one tensor, or leave it out for all leaves")
    for place, tensor in enumerate(found):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}[{place}] is a {type(tensor).__name__}; expected a tensor")
        if not tensor.requires_grad:
            raise InputError(
                f"{name}[{place}] (shape {tuple(tensor.shape)}) does not require grad: set requires_grad first"
            )
    return list({id(t): t for t in found}.values())
