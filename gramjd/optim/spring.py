"""SPRING: natural gradient steps between samples, each built on the one before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gramjd.aggregation.solvers.damped import solve_damped
from gramjd.errors import AggregatorError
from gramjd.optim.jacobian import Jacobian, jacobian_of
from gramjd.optim.parameters import Point, as_parameters, trained
from gramjd.optim.residuals import Closure, Weights, evaluate
from gramjd.optim.systems import checked
from gramjd.options import as_number


class SPRINGStep(NamedTuple):
    """What a step did.

    Args:
        loss: `1/2 |r|^2` before it, with weights.
        damping: lambda.
        rate: what the direction was multiplied by.
        direction_norm: `|phi|`.
    """

    loss: float
    damping: float
    rate: float
    direction_norm: float


class SPRING(Optimizer):
    """Natural gradient descent for m residuals `r` in the space of the samples, with momentum.

    With `J = dr/dp`, residuals and rows times the root of their weights, and `phi` the direction of the step before,

        phi <- mu phi + J^T (J J^T + lambda I)^-1 (r - mu J phi),        p <- p - lr phi,

    which is the minimum of `|r - J phi'|^2 + lambda |phi' - mu phi|^2` over `phi'`: the new batch decides in the
    directions that it sees, earlier ones in the others. With `momentum=0` it is the update of `GaussNewton`, done by
    SGD at the rate `lr` (minSR). Nothing is rejected, so the closure is called once and may return other residuals
    each time: this is the one for random batches; where the points stay, `LevenbergMarquardt` needs no rate.

    **Cost of a step**: a Gramian, a second walk for `J phi` (none at first, or without momentum), `m^3 / 3` operations,
    a backward pass. For `J phi` the rows of one parameter at a time are formed, `m` times its size. With up to `4 m`
    numbers in the parameters J is formed as a matrix [m, n] instead, which one walk gives.

    In the source rows are centred, as a wave function has no scale, and one more matrix stands in the system for that;
    residuals have a scale, and it is left out.

    Args:
        params: the parameters, as of any optimizer, in one group.
        lr: the rate; schedulers of `torch.optim.lr_scheduler` change it.
        momentum: `mu`, from 0 to below 1.
        damping: above 0; in units of the mean squared length of the rows of J where `relative`.
        relative: True (default) for `lambda = damping * trace(J J^T) / m`, False for `lambda = damping`.
        max_norm: an upper bound for the length of a step, `lr |phi|`; None for none.
        weights: as in `LevenbergMarquardt`.
        memory_budget: as in `gramjd.gramian`.

    Attributes:
        last: the `SPRINGStep` of the last step; `last._asdict()` goes to any logger.

    Raises:
        InputError: bad options; weights that do not fit the blocks.
        LossError, GraphError, BudgetError: as `gramjd.gramian`.
        AggregatorError: `J J^T + lambda I` is singular up to rounding, or a result is not finite. In every case, and if
            the closure raises, the parameters and the state are as they were.

    Source: Goldshlager, Abrahamsen and Lin, A Kaczmarz-inspired approach to accelerate the optimization of neural
    network wavefunctions (2024): the SPRING update, and the bound on the norm. Without momentum: Chen and Heyl,
    Empowering deep neural quantum states through efficient optimization (2024).

    >>> import torch
    >>> p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> rows, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64), torch.tensor([1.0, 3.0])
    >>> optimizer = SPRING([p], lr=1.0, momentum=0.9, damping=1e-6)
    >>> for k in range(40):  # one row at a time, as in Kaczmarz' method
    ...     loss = optimizer.step(lambda: rows[k % 2 : k % 2 + 1] @ p - y[k % 2])
    >>> bool((p - torch.tensor([1.0, 2.0])).abs().max() < 0.1)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.9,
        damping: float = 1e-3,
        *,
        relative: bool = True,
        max_norm: float | None = None,
        weights: Weights = None,
        memory_budget: int | None = None,
    ) -> None:
        """Check the options."""

        def finite(x: float) -> bool:
            return 0 < x < math.inf

        options = {
            "lr": as_number(lr, "lr", "above 0", finite),
            "momentum": as_number(momentum, "momentum", "from 0 to below 1", lambda x: 0 <= x < 1),
            "damping": as_number(damping, "damping", "above 0", finite),
            "relative": bool(relative),
            "max_norm": None if max_norm is None else as_number(max_norm, "max_norm", "above 0", finite),
        }
        super().__init__(params, options)
        as_parameters(self.param_groups)
        self._weights, self._budget = weights, memory_budget
        self.last: SPRINGStep | None = None

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]  # torch says Callable[[], float]
        """Do one step.

        Args:
            closure: returns the residuals, as that of `LevenbergMarquardt`.

        Returns:
            The loss `1/2 sum_i weight_i r_i^2` before the step, a float64 tensor.
        """
        parameters = trained(as_parameters(self.param_groups))
        residuals = evaluate(closure, self._weights)
        options, J = self.param_groups[0], jacobian_of(residuals, parameters, self._budget)
        before = [self.state[p].get("direction") for p in parameters]
        held = [torch.zeros_like(p) if phi is None else phi for p, phi in zip(parameters, before, strict=True)]
        held = [options["momentum"] * phi for phi in held]
        r = residuals.values
        if options["momentum"] and any(phi is not None for phi in before):
            r = r - J.push(held)
        w, damping = self._solve(J, r)
        phi = [old + new.to(old.dtype) for old, new in zip(held, J.pull(w), strict=True)]
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in phi))
        if not math.isfinite(norm):
            raise AggregatorError("the direction has NaN or infinite elements; the parameters were left as they were")
        rate = float(options["lr"])
        if options["max_norm"] is not None and rate * norm > options["max_norm"]:
            rate = options["max_norm"] / norm
        point = Point(parameters)
        point.keep(point.moved(phi, -rate))
        for p, part in zip(parameters, phi, strict=True):
            self.state[p]["direction"] = part
        self.last = SPRINGStep(residuals.loss, damping, rate, norm)
        return residuals.values.new_tensor(residuals.loss)

    def _solve(self, J: Jacobian, r: Tensor) -> tuple[Tensor, float]:
        """`(J J^T + lambda I)^-1 r`, and lambda."""
        options, H = self.param_groups[0], checked(J.gramian())
        damping = options["damping"] * (float(H.diagonal().mean()) if options["relative"] else 1.0)
        if not damping:  # all gradients are zero
            return torch.zeros_like(r), damping
        H.diagonal().add_(damping)
        w, sound = solve_damped(H, r, J.residuals.eps)
        if not bool(sound):
            raise AggregatorError(
                f"J J^T + lambda I is singular up to rounding with damping={options['damping']}: raise the damping, or "
                "compute the residuals in float64"
            )
        return w, damping
