"""UPGrad: project each gradient so that it conflicts with no other, then average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.aggregation._check import as_vector, check_length, check_shape
from gramjd.aggregation._weighting import Weighting, weights_dtype
from gramjd.aggregation.solvers import dual_cone
from gramjd.errors import AggregatorError


class UPGrad(Weighting):
    """`w = sum_i p_i w_i`, `w_i in argmin {v^T G v : v >= e_i}`: an update that no loss objects to.

    `J^T w_i` is the projection of gradient i onto the dual cone `{y : J y >= 0}`, so to first order the update
    increases no loss. It is linear in the length of each gradient, and equals the mean when no two gradients
    conflict. The weights are exact (see `gramjd.aggregation.solvers`) whatever the scale, the rank and the conditioning
    of `G`, unless `tol` is given; a gradient counts as zero once its square is below the smallest normal number of the
    dtype of `G`.

    Args:
        preference: the positive `p`, [m], one number per loss; None for the mean, `p = 1/m`. It is used as it
            stands: `p = 1` sums the projections.
        tol: None for weights exact in float64; or an accuracy: each projected gradient may then be off by about `tol`
            times the gradient's length. `w >= p` holds without error either way. It can save time from 1e-2 on and
            for more than 64 losses. On the Gramians of networks, m = 128 to 512: 1e-2 takes 0.5 to 1.2 times as long
            as the exact weights and leaves the update off by 0.6 % or less, 0.1 takes 0.2 to 0.7 times as long, and
            its update is off by up to 20 %.
        ridge: added to the diagonal of `G`, in units of its trace; 0 for the definition. The implementation published
            with the paper adds 1e-4. Weights stay smaller where gradients nearly cancel, and the update may conflict
            with gradients that are short beside the others.
        negligible: a gradient shorter than this times the root mean square `r` of all lengths does not object: each
            long gradient, and `sum p_i g_i` over the short ones, are projected so that they conflict with no long one.
            To first order, losses with long gradients do not rise, and the others by at most `negligible r` per unit
            of length of the update. 0, for the definition, lets every gradient object, however short: with one loss
            per sample, samples that are fitted already then block the others (docs/paper.md); 0.1 is a good value.

    Raises:
        AggregatorError: bad `preference`, `tol`, `ridge` or `negligible`; or `G` is not square, finite, symmetric, or
            further from positive semi-definite than rounding explains. On a GPU the values of `G` are not looked at,
            as the host would have to wait for them: such a `G` gives NaN.

    Source: Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (2024), equation 4 and proposition 1.

    >>> import torch
    >>> from gramjd.aggregation import UPGrad
    >>> J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    >>> UPGrad()(J @ J.T)
    tensor([1.0000, 0.7500])
    >>> UPGrad().aggregate(J)
    tensor([0.2500, 0.7500])
    """

    _scale_free = True
    _per_loss = ("_preference",)

    def __init__(
        self,
        preference: Sequence[float] | Tensor | None = None,
        tol: float | None = None,
        ridge: float = 0.0,
        negligible: float = 0.0,
    ) -> None:
        """Check the options; nothing depends on m until the first call."""
        self._preference = None if preference is None else as_vector(preference, "preference", positive=True)
        if tol is not None and not (isinstance(tol, (int, float)) and 0 < tol < math.inf):
            raise AggregatorError(f"tol must be a positive number, or None for exact weights; got {tol!r}")
        for name, value in (("ridge", ridge), ("negligible", negligible)):
            if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise AggregatorError(f"{name} must be a finite number, 0 or more; got {value!r}")
        self._tol, self._ridge, self._negligible = tol, ridge, negligible

    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m]."""
        m, dtype = check_shape(G), weights_dtype(G)
        if self._preference is None:
            p = G.new_full((m,), 1 / max(m, 1), dtype=torch.float64)
        else:
            check_length(self._preference, "preference", m)
            p = self._preference = self._preference.to(G.device)
        if self._negligible and m:
            return self._without_short(G, p).to(dtype)
        W = dual_cone(G, torch.eye(m, dtype=torch.float64, device=G.device), self._tol, ridge=self._ridge)
        return (p @ W).to(dtype)

    def _without_short(self, G: Tensor, p: Tensor) -> Tensor:
        """The weights where short gradients do not object; no value is looked at by the host."""
        objects = long_enough(G, self._negligible)
        eye, short = torch.eye(len(G), dtype=torch.float64, device=G.device), torch.where(objects, 0.0, p)
        # A gradient of zero forbids nothing and is its own projection; the last one stands for all that are short.
        A = torch.cat([eye * objects, short[None]])
        stray = torch.where(G.isfinite(), 0.0, G).sum()  # what is not finite is for the solver
        G = (stray + A @ G.double() @ A.T).to(G.dtype)  # by which it judges what is rounding
        among = dual_cone(G[:-1, :-1], eye, self._tol, ridge=self._ridge)
        together = dual_cone(G, torch.eye(len(A), dtype=torch.float64, device=G.device)[-1:], ridge=self._ridge)
        return torch.where(objects, p, 0.0) @ among + together[0] @ A

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        options = []
        if self._preference is not None:
            options.append(f"preference={self._preference.tolist()}")
        if self._tol is not None:
            options.append(f"tol={self._tol}")
        if self._ridge:
            options.append(f"ridge={self._ridge}")
        if self._negligible:
            options.append(f"negligible={self._negligible}")
        return f"UPGrad({', '.join(options)})"


def long_enough(G: Tensor, negligible: float) -> Tensor:
    """Per gradient [m], whether it is at least `negligible` times as long as the root mean square of all.

    >>> long_enough(torch.tensor([[4.0, 0.1], [0.1, 0.01]]), 0.1)
    tensor([ True, False])
    """
    squares = G.diagonal().double()
    # In units of the longest one, so that no square leaves the range of numbers.
    squares = squares / squares.amax().clamp_min(torch.finfo(torch.float64).tiny)
    return squares >= negligible**2 * squares.mean()
