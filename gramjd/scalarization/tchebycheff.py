"""Smooth Tchebycheff: a soft maximum of weighted losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gramjd.errors import InputError, LossError
from gramjd.scalarization._scalarization import Scalarization, as_number


class SmoothTchebycheff(Scalarization):
    """`mu log sum_i exp(lambda_i (L_i - z_i) / mu)`: for small `mu` the largest of the `lambda_i (L_i - z_i)`.

    Every Pareto point is a minimum for some preference, which does not hold for weighted sums.

    Args:
        preference: the `lambda` [m], not negative; default 1/m for all.
        ideal: the `z` [m], below the losses' best values; default 0 for all.
        mu: how soft the maximum is, above 0.

    Raises:
        InputError: options that are not allowed. LossError at a call: another number of losses than the options have.

    Source: Lin et al., Smooth Tchebycheff scalarization for multi-objective optimization (2024).

    >>> import torch
    >>> SmoothTchebycheff(preference=[1.0, 1.0], mu=0.1)(torch.tensor([1.0, 3.0], requires_grad=True)).item()
    3.0
    """

    def __init__(
        self, preference: Sequence[float] | None = None, ideal: Sequence[float] | None = None, mu: float = 1.0
    ) -> None:
        """Check the options."""
        super().__init__()
        self._preference, self._ideal = _vector(preference, "preference"), _vector(ideal, "ideal")
        if self._preference is not None and not bool((self._preference >= 0).all()):
            raise InputError(f"preference must not be negative; got {self._preference.tolist()}")
        self._mu = as_number(mu, "mu", "finite and above 0", lambda x: 0 < x < math.inf)

    def _scalar(self, losses: Tensor) -> Tensor:
        m = len(losses)
        for name, given in (("preference", self._preference), ("ideal", self._ideal)):
            if given is not None and len(given) != m:
                raise LossError(f"{name} has {len(given)} entries, but there are {m} losses: give one per loss")
        weights = torch.full_like(losses, 1 / m) if self._preference is None else self._preference.to(losses)
        ideal = torch.zeros_like(losses) if self._ideal is None else self._ideal.to(losses)
        return self._mu * (weights * (losses - ideal) / self._mu).logsumexp(0)


def _vector(values: Sequence[float] | None, name: str) -> Tensor | None:
    if values is None:
        return None
    found = torch.as_tensor(values, dtype=torch.float64)
    if found.ndim != 1 or not bool(found.isfinite().all()):
        raise InputError(f"{name} must be a vector of finite numbers, one per loss; got {values!r}")
    return found
