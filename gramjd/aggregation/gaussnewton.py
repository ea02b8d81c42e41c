"""GaussNewton: the damped Gauss-Newton step of a least squares problem, computed between samples."""

from __future__ import annotations

import torch
from torch import Tensor

from gramjd.aggregation._check import as_gramian, as_number
from gramjd.aggregation._look import may_look
from gramjd.aggregation._loss_weighting import LossWeighting
from gramjd.aggregation.solvers.damped import solve_damped
from gramjd.errors import AggregatorError


class GaussNewton(LossWeighting):
    """`w = (G + lambda I)^-1 r` for residuals `r` [m] with `G = J J^T`, `J = dr/dp`: Levenberg-Marquardt.

    The update is `J^T w = J^T (J J^T + lambda I)^-1 r = (J^T J + lambda I)^-1 J^T r`: what the Gauss-Newton method
    solves for n parameters, solved for m residuals instead. A step of rate 1 minimises
    `|r - J s|^2 + lambda |s|^2` over `s`. It is natural gradient descent for Gaussian errors. An optimizer that adapts
    the damping and takes back steps that fail: `gramjd.optim.LevenbergMarquardt`.

    **What to hand over as losses: the residuals themselves**, with their signs, not their squares:
    `gram_backward(model(x) - y, GaussNewton())`, or `u_xx - f` for a differential equation. To weight a residual,
    multiply it. With squares the result is another method: for `losses = r^2` and `lambda = 0` it is half of the step
    above (a root of a square is a double root), and the damping then acts most where residuals are small.

    The system is solved in float64 by one Cholesky factorisation, m^3 / 3 operations, on the device of `G`. Rounding in
    `G` moves `w` by up to its relative size times the largest eigenvalue over `lambda`: for little damping compute the
    losses in float64, and G will be too. What depends on rounding alone is refused.

    Properties: non-conflicting no, linear under scaling no, weighted yes. Scaling all residuals changes nothing when
    the damping is relative.

    Args:
        damping: 0 or more. With 0 the residuals' gradients must be independent.
        relative: True (default) to count the damping in units of `trace(G) / m`, the mean squared length of the
            gradients (and the mean eigenvalue): `lambda = damping * trace(G) / m`. False for `lambda = damping`.

    Raises:
        AggregatorError: bad options; no losses, or not m of them; `G` [m, m] is not square, finite and symmetric; or
            `G + lambda I` is singular up to rounding.

    Source: Marquardt, An algorithm for least-squares estimation of nonlinear parameters (1963), equation 12, with the
    identity that Chen and Heyl, Empowering deep neural quantum states through efficient optimization (2024) use.

    >>> import torch
    >>> from gramjd.aggregation import GaussNewton
    >>> J, r = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([2.0, 3.0])
    >>> GaussNewton(damping=0.0).aggregate(J, r)
    tensor([2., 1.])
    >>> GaussNewton(damping=1.0, relative=False).aggregate(J, r)
    tensor([1.0000, 0.9000])
    """

    _scale_free = False

    def __init__(self, damping: float = 1e-3, relative: bool = True) -> None:
        """Check the damping."""
        self._damping = as_number(damping, "damping", "that is finite, 0 or more", lambda x: 0 <= x < float("inf"))
        self._relative = bool(relative)

    def _weights(self, G: Tensor, losses: Tensor) -> Tensor:
        H, r = as_gramian(G), losses.reshape(-1).double()
        if not len(H):
            return r
        H.diagonal().add_(self._damping * (H.diagonal().mean() if self._relative else 1.0))
        w, sound = solve_damped(H, r, torch.finfo(G.dtype).eps)
        # All gradients zero: nothing moves, whatever the residuals.
        zero = H.abs().amax() == 0
        solved, w = (sound | zero) & torch.isfinite(r).all(), torch.where(zero, 0.0, w)
        if not may_look(G.device):
            return torch.where(solved, w, torch.nan)
        if not bool(solved):
            raise self._explain(G, r)
        return w

    def _explain(self, G: Tensor, r: Tensor) -> AggregatorError:
        if not bool(torch.isfinite(r).all()):
            return AggregatorError(f"the losses must be finite; got {r[~torch.isfinite(r)][0].item()} among them")
        return AggregatorError(
            f"G + lambda I is singular up to rounding with {self!r} and a {G.dtype} Gramian: raise the damping, compute"
            " the losses in float64, or take Sven, which leaves out what is singular"
        )

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"GaussNewton(damping={self._damping}, relative={self._relative})"
