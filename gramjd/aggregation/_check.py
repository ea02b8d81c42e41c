"""Checks of what callers hand to an aggregator. All of them raise AggregatorError."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gramjd import options
from gramjd.aggregation._look import may_look
from gramjd.errors import AggregatorError

# How far G and its transpose may lie apart, relative to the norms of the two gradients of an entry.
_ASYMMETRY = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 3e-2}
# Entries of a row without length, relative to the largest squared norm: noise in bfloat16 reaches this.
STRAY = 1e-3


def check_shape(G: Tensor) -> int:
    """m, for a Gramian that is a real floating-point [m, m] tensor. Reads no values, so costs no device sync."""
    if not isinstance(G, Tensor):
        raise AggregatorError(f"the Gramian must be a torch.Tensor of shape [m, m]; got {type(G).__name__}")
    if G.ndim != 2 or G.shape[0] != G.shape[1]:
        hint = "; to aggregate a Jacobian use .aggregate(J)" if G.ndim == 2 else ""
        raise AggregatorError(f"the Gramian must be square, [m, m]; got shape {list(G.shape)}{hint}")
    if G.dtype not in _ASYMMETRY:
        raise AggregatorError(f"the Gramian must be real floating point; got {G.dtype}: convert it, e.g. G.double()")
    return G.shape[0]


def check_jacobian(J: Tensor) -> None:
    """Raise unless `J` is a real floating-point matrix."""
    if not isinstance(J, Tensor) or J.ndim != 2 or not J.is_floating_point():
        got = f"shape {list(J.shape)}, {J.dtype}" if isinstance(J, Tensor) else type(J).__name__
        raise AggregatorError(f"the Jacobian must be a real floating-point [m, n] tensor; got {got}")


def as_gramian(G: Tensor, look: bool | None = None) -> Tensor:
    """`G` [m, m] in float64 and symmetric to the last digit, for aggregators that need no cosines.

    Args:
        G: [m, m].
        look: whether to look at the values, which reads one number; None for what suits the device. Where they are not
            looked at, all is NaN instead of an error about values.

    Raises:
        AggregatorError: a shape or dtype that `check_shape` refuses, or values that are not finite, not symmetric, or
            larger beside the diagonal than inner products can be, by more than rounding explains.
    """
    if not check_shape(G):
        return G.detach().double()
    H = G.detach().double()
    lengths = H.diagonal()
    norms = lengths.clamp_min(0).sqrt()
    bounds = torch.outer(norms, norms)
    # What stands in a row without length: nothing, or the noise of the longest rows, or the rest of an underflow.
    floor = STRAY * lengths.amax().clamp_min(0) * (bounds == 0) + underflow(G.dtype)
    limit = asymmetry_limit(G.dtype) * bounds + floor
    excess = torch.maximum((H - H.mT).abs(), H.abs() - bounds) - limit
    good, symmetric = excess.amax() <= 0, (H + H.mT) / 2
    if not (may_look(G.device) if look is None else look):
        return torch.where(good, symmetric, torch.nan)
    if not bool(good):
        raise explain_bad_values(G.detach(), norms.to(G.dtype))
    return symmetric


def underflow(dtype: torch.dtype) -> float:
    """The size up to which entries of a Gramian have lost digits because they are below the smallest normal number."""
    return torch.finfo(dtype).tiny


def asymmetry_limit(dtype: torch.dtype) -> float:
    """The largest |G_ij - G_ji| / (|g_i| |g_j|) that passes as rounding in this dtype."""
    return _ASYMMETRY[dtype]


def explain_bad_values(G: Tensor, norms: Tensor) -> AggregatorError:
    """The error for a Gramian whose values cannot be used. Slow; called only once something is known to be wrong."""
    bad = (~torch.isfinite(G)).nonzero()
    if len(bad):
        i, j = bad[0].tolist()
        return AggregatorError(
            f"the Gramian must be finite; {len(bad)} of {G.numel()} entries are not, the first is G[{i}, {j}] ="
            f" {G[i, j].item()}. Look for an overflow or a NaN in the losses or their gradients"
        )
    gap = (G - G.mT).abs() / (norms[:, None] * norms).clamp_min(torch.finfo(G.dtype).tiny)
    k = int(gap.argmax())
    i, j = divmod(k, G.shape[0])
    if gap[i, j] > 0:
        return AggregatorError(
            f"the Gramian must be symmetric; G[{i}, {j}] = {G[i, j].item():.6g} but G[{j}, {i}] = {G[j, i].item():.6g}."
            " Pass J J^T, or (G + G.mT) / 2 if the difference is meant to be noise"
        )
    i = int(G.diagonal().argmin())
    return AggregatorError(
        f"the Gramian must be positive semi-definite, as J J^T is; G[{i}, {i}] = {G[i, i].item():.6g} and the largest"
        f" entry of its row is {G[i].abs().max().item():.6g}"
    )


def as_vector(values: Sequence[float] | Tensor, name: str, positive: bool) -> Tensor:
    """`values` as a finite float64 vector on the CPU, all of it above zero when `positive`."""
    try:
        vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise AggregatorError(f"{name} must be a vector of numbers, one per loss; got {values!r}") from error
    if vector.ndim != 1:
        raise AggregatorError(f"{name} must be a vector, one number per loss; got shape {list(vector.shape)}")
    if not bool(torch.isfinite(vector).all()):
        raise AggregatorError(f"{name} must be finite; got {vector.tolist()}")
    if positive and not bool((vector > 0).all()):
        raise AggregatorError(f"{name} must be positive; got {vector.tolist()}. Leave out a loss that has no say")
    return vector


def check_length(vector: Tensor, name: str, m: int) -> None:
    """Raise unless `vector` has one entry per loss."""
    if len(vector) != m:
        raise AggregatorError(f"{name} has {len(vector)} entries, but the Gramian is {m} x {m}: give one per loss")


as_number = partial(options.as_number, error=AggregatorError)
as_count = partial(options.as_count, error=AggregatorError)
