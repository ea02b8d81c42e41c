"""The weightings that the benchmark of weights compares, with TorchJD's and the test that ours are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.aggregation import MGDA, CAGrad, NashMTL, UPGrad
from gramjd.aggregation.solvers import dual_cone
from gramjd.errors import GramjdError
from gramjd.profiling.methods import torchjd_aggregator

Weigh = Callable[[Tensor], Tensor]
ROUGH = "tol=1e-2"
OPTIMAL = 1e-8
RADIUS = 0.5  # of CAGrad; its authors use 0.2 to 0.8


class InexactError(GramjdError, RuntimeError):
    """What should be exact weights failed the optimality test, so that no error measured from them means anything."""


class Compared(NamedTuple):
    """Ours, TorchJD's `(G) -> weigh`, exact weights in float64, and how far an answer is from optimal."""

    ours: dict[str, Weigh]
    theirs: Callable[[Tensor], Weigh]
    exact: Weigh
    residual: Callable[[Tensor, Tensor], float]


def exact_upgrad(G: Tensor) -> Tensor:
    """The projections' weights [m, m], which UPGrad averages."""
    return dual_cone(G, torch.eye(len(G), dtype=torch.float64))


def upgrad_residual(G: Tensor, W: Tensor) -> float:
    """How far `W >= I`, `G w >= 0`, `e_i^T G w = w^T G w` fail, in units of lengths and beyond rounding."""
    norms, noise, eye = _lengths(G), _noise(G, W), torch.eye(len(G), dtype=torch.float64)
    Y = W @ G.double()
    size = norms[:, None]
    low = -Y / norms - noise
    gap = ((W - eye) * Y).sum(1).abs()[:, None] - noise * (W * norms).sum(1, keepdim=True)
    return _largest(low / size, gap / size.square(), eye - W)


def mgda_residual(G: Tensor, w: Tensor) -> float:
    """How far `w >= 0`, `sum w = 1` and `G w >= w^T G w` fail, the last in units of the shortest gradient squared."""
    y, noise = G.double() @ w, float(_noise(G, w))
    worst = w @ y - y - noise * _lengths(G)
    return _largest(worst / _lengths(G).amin() ** 2, -w, (w.sum() - 1).abs() - 1e-12)


def cagrad_residual(G: Tensor, w: Tensor) -> float:
    """With `x = m w - 1`: how far `x >= 0`, `|J^T x| = c |J^T 1|`, and `x > 0` only for the smallest gains fail."""
    D, x = G.double(), len(G) * w - 1
    radius = RADIUS * math.sqrt(float(D.sum()))
    y, length = D @ w, float(x @ D @ x) ** 0.5
    noise = float(_noise(G, w)) * float(x.abs() @ _lengths(G))
    gap = float(x @ (y - y.min())) - noise
    reach = float((w @ D @ w).sqrt()) * radius
    return _largest(-x, torch.tensor([abs(length - radius) / radius - noise / reach, gap / reach]))


def nash_residual(G: Tensor, w: Tensor) -> float:
    """How far `w * G w = 1` fails, beyond what rounding explains."""
    error = (w * (G.double() @ w) - 1).abs() - _noise(G, w) * w * _lengths(G)
    return _largest(error)


def exact_weights(weighting: Compared, G: Tensor) -> tuple[Tensor, float]:
    """The weights [m] in float64, and how far they are from optimal.

    Raises:
        InexactError: further than `OPTIMAL`.
    """
    W = weighting.exact(G)
    residual = weighting.residual(G, W)
    if not residual <= OPTIMAL:
        raise InexactError(f"optimality is missed by {residual:.1e}, allowed is {OPTIMAL:.0e}: report this as a bug")
    return (W.mean(0) if W.ndim == 2 else W), residual


def _lengths(G: Tensor) -> Tensor:
    return G.double().diagonal().sqrt()


def _noise(G: Tensor, w: Tensor) -> Tensor:
    """What rounding of `G` to its dtype can change in `G w`, over the gradients' lengths."""
    return 8 * torch.finfo(G.dtype).eps * (w.abs() * _lengths(G)).sum(-1, keepdim=True)


def _largest(*violations: Tensor) -> float:
    return max(0.0, *(float(v.amax()) for v in violations))


def _theirs(name: str, *options: object) -> Callable[[Tensor], Weigh]:
    """TorchJD's weighting of that name, which takes a Gramian."""
    return lambda G: torchjd_aggregator(name, *options)


def _their_nash(G: Tensor) -> Weigh:
    """It takes a matrix: a square root of `G`. Begun anew at each call, and brought to the length `sqrt(m)`."""
    values, vectors = torch.linalg.eigh(G.double())
    root = (vectors * values.clamp_min(0).sqrt()).to(G.dtype)
    aggregator = torchjd_aggregator("NashMTL", len(G))

    def weigh(_: Tensor) -> Tensor:
        aggregator.reset()
        w = aggregator.weighting(root)
        return w * math.sqrt(len(G)) / torch.linalg.vector_norm(w @ root)

    return weigh


WEIGHTINGS = {
    "UPGrad": Compared(
        {"exact": UPGrad(), ROUGH: UPGrad(tol=1e-2)}, _theirs("UPGradWeighting"), exact_upgrad, upgrad_residual
    ),
    "MGDA": Compared({"exact": MGDA()}, _theirs("MGDAWeighting"), lambda G: MGDA()(G.double()), mgda_residual),
    "CAGrad": Compared(
        {"exact": CAGrad(RADIUS)},
        _theirs("CAGradWeighting", RADIUS),
        lambda G: CAGrad(RADIUS)(G.double()),
        cagrad_residual,
    ),
    "NashMTL": Compared({"exact": NashMTL()}, _their_nash, lambda G: NashMTL()(G.double()), nash_residual),
}
