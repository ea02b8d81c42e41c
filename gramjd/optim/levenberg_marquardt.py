"""Levenberg-Marquardt as an optimizer: steps that are accepted or rejected, and a damping that learns from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gramjd.errors import InputError
from gramjd.optim.damping import ACCEPTED, Damping
from gramjd.optim.jacobian import jacobian_of
from gramjd.optim.parameters import Point, as_parameters, trained
from gramjd.optim.residuals import Closure, Residuals, Weights, evaluate
from gramjd.optim.systems import Direction, System, divisors_of, largest, system_of
from gramjd.options import as_choice, as_count, as_number
from gramjd.renamed import foreign_words

SOLVERS = ("auto", "gramian", "jacobian")
SCALINGS = ("none", "tensor", "coordinate")
WORDS = {"lr": "leave it out: steps are tried, and kept or taken back; the first lambda is damping="}
HALVINGS = 8  # points that a line search tries after the first


class LevenbergMarquardtStep(NamedTuple):
    """What a step did.

    Args:
        loss: `1/2 |r|^2` before it, with weights.
        loss_after: after it; the same where no step was accepted.
        accepted: True if the parameters moved.
        gain: actual over predicted reduction of the loss, for the last step that was tried; NaN where none was.
        damping: the lambda that the last step was tried with.
        length: the factor that a line search chose, 1 without.
        trials: how often the closure was called after the first time.
        gradient_norm: `|D^-1 J^T r|`.
    """

    loss: float
    loss_after: float
    accepted: bool
    gain: float
    damping: float
    length: float
    trials: int
    gradient_norm: float


class LevenbergMarquardt(Optimizer):
    """Minimises `L(p) = 1/2 sum_i weight_i r_i(p)^2` over the parameters, given m residuals `r`.

    A step solves `min |r - J s|^2 + lambda |D s|^2` with `J = dr/dp` [m, n], r and J times the root of the weights, and
    moves to `p - s` if the loss falls by at least `1e-4` of what that model predicts. If not, the parameters are
    restored to the bit and lambda is raised, up to `trials` times. lambda follows Nielsen's rule (`Damping`).

    Where n is large it is solved between samples: `s = J^T (J J^T + lambda I)^-1 r`, from the Gramian, without a row of
    J. Up to `n = 4 m` J is formed as a matrix, which is quicker then; and where n is at most `m / 2`, or 64 and m, the
    problem is solved by QR of J, whose condition number is the root of the Gramian's.

    ```
    optimizer = gramjd.optim.LevenbergMarquardt(model.parameters())
    for _ in range(100):
        loss = optimizer.step(residuals)  # a function that returns the residuals
    ```

    **Cost of a step**: a Gramian of m residuals, `m^3 / 3` operations and a backward pass per lambda that is tried, and
    one forward pass per trial; memory for five m x m matrices of float64, 670 MB for m = 4096, and `m n` numbers where
    J is formed. With QR: `2 m n^2` operations, and `4 n^3` per lambda.

    **The closure** is called with gradients enabled, first for J and then at each trial; it must return the same
    residuals for the same parameters, so draw new points between steps, and leave dropout off. It need not call
    `backward`, and `.grad` is neither read nor written. It returns the residuals with their signs, not their squares: a
    tensor of any shape, a sequence of tensors, or a dictionary from names to tensors, whose blocks can be weighted.

    Use float64 for parameters and data: all sums are made in float64 in any case, and what float32 gradients leave of
    small eigenvalues is noise, below which lambda is not lowered. Residuals on other processes are not seen.

    Args:
        params: the parameters, as of any optimizer, in one group. Those without `requires_grad`, or not reached by the
            residuals, stay as they are.
        damping: the first lambda, in units of the mean squared length of the rows of `J D^-1`, as in `GaussNewton`.
        weights: 0 or more per block, in the form that the closure returns: a dictionary for a dictionary, a sequence
            for a sequence (or, of one, for a tensor). Each is a number or a tensor that expands to its block.
        line_search: True to look for a shorter step along `-s` before lambda is raised, by quadratic interpolation.
        trials: how many lambdas to try in a step.
        scaling: "none" for `D = I`. "tensor": a number per parameter, the root mean square of its columns of J, the
            largest that there was; a Gramian per parameter is kept for it. "coordinate": the length of each column of
            J, which is formed for it. With scaling, a parameter may be counted in other units without changing a step.
        solver: "gramian" for no rows of J, "jacobian" for J as a matrix, or "auto" for the latter where `n <= 4 m`.
        memory_budget: as in `gramjd.gramian`.

    Attributes:
        last: the `LevenbergMarquardtStep` of the last step; `last._asdict()` goes to any logger.

    Raises:
        InputError: bad options; weights that do not fit the blocks; another number of residuals at a trial.
        LossError, GraphError, BudgetError, AggregatorError: as `gramjd.gramian`, for the residuals before the step. In
            every case, and if the closure raises, the parameters and the state are as they were. At a trial residuals
            that are not finite are a reason to reject it.

    Source: Levenberg (1944); Marquardt (1963); scaling by the largest lengths: Moré, The Levenberg-Marquardt algorithm:
    implementation and theory (1978), section 4; lambda: Nielsen, Damping parameter in Marquardt's method (1999).

    >>> import torch
    >>> x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> optimizer = LevenbergMarquardt([p])
    >>> for _ in range(20):
    ...     loss = optimizer.step(lambda: p[0] * torch.exp(p[1] * x) - torch.tensor([1.0, 2.0, 4.0]))
    >>> p.detach()  # 1 * exp(log(2) x)
    tensor([1.0000, 0.6931], dtype=torch.float64)
    """

    @foreign_words(WORDS, "LevenbergMarquardt")
    def __init__(
        self,
        params: Iterable[Any],
        damping: float = 1e-3,
        *,
        weights: Weights = None,
        line_search: bool = False,
        trials: int = 10,
        scaling: str = "none",
        solver: str = "auto",
        memory_budget: int | None = None,
    ) -> None:
        """Check the options."""
        options = {
            "damping": as_number(damping, "damping", "above 0", lambda x: 0 < x < math.inf),
            "line_search": bool(line_search),
            "trials": as_count(trials, "trials", 1),
            "scaling": as_choice(scaling, "scaling", SCALINGS),
            "solver": as_choice(solver, "solver", SOLVERS),
        }
        if options["scaling"] == "coordinate" and options["solver"] == "gramian":
            raise InputError('scaling="coordinate" needs the columns of J: take solver="jacobian", or scaling="tensor"')
        super().__init__(params, options)
        as_parameters(self.param_groups)
        self._weights, self._budget = weights, memory_budget
        self.last: LevenbergMarquardtStep | None = None

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]  # torch says Callable[[], float]
        """Do one step.

        Args:
            closure: returns the residuals.

        Returns:
            The loss `1/2 sum_i weight_i r_i^2` before the step, a float64 tensor.
        """
        everything = as_parameters(self.param_groups)
        parameters, residuals = trained(everything), evaluate(closure, self._weights)
        options, state = self.param_groups[0], self.state[everything[0]]
        # Columns of J are needed for their lengths.
        form = "jacobian" if options["scaling"] == "coordinate" else options["solver"]
        J = jacobian_of(residuals, parameters, self._budget, form)
        lengths = None
        if options["scaling"] != "none":
            before = [self.state[p].get("lengths") for p in parameters]
            lengths = largest(J.lengths(options["scaling"]), before, parameters)
        system = system_of(J, None if lengths is None else divisors_of(lengths))
        search = Search(system, residuals, closure, self._weights, Point(parameters), bool(options["line_search"]))
        if system.gradient_norm > 0:
            value = state.get("damping", options["damping"] * system.unit)
            damping = Damping(value, state.get("growth", 2.0)).at_least(system.least)
            with search.point.restoring():
                damping = search.run(damping, options["trials"])
            search.finish()
            state.update(damping=damping.value, growth=damping.growth)
            for p, length in zip(parameters, lengths or (), strict=lengths is not None):
                self.state[p]["lengths"] = length
        self.last = search.outcome
        return residuals.values.new_tensor(residuals.loss)


class Search:
    """The trials of one step."""

    def __init__(
        self,
        system: System,
        residuals: Residuals,
        closure: Closure,
        weights: Weights,
        point: Point,
        along: bool,
    ) -> None:
        """Begin at the point where the residuals are."""
        self.system, self.residuals, self.point = system, residuals, point
        self._closure, self._weights, self._along = closure, weights, along
        self._trials = 0
        self._kept: list[Tensor] | None = None
        self.outcome = LevenbergMarquardtStep(
            residuals.loss, residuals.loss, False, math.nan, math.nan, 1.0, 0, system.gradient_norm
        )

    def run(self, damping: Damping, trials: int) -> Damping:
        """Try lambdas until a step is accepted; returns the damping for the next step."""
        for _ in range(trials):
            direction = self.system.direction(damping.value)
            tried = None if direction is None else self._try(direction, damping.value)
            if tried:
                gain = self.outcome.gain
                # A shorter step that was accepted says that the model is not right that far.
                return damping.lowered(gain) if self.outcome.length == 1 else damping.raised()
            damping = damping.raised()
        return damping

    def finish(self) -> None:
        """Move to what was accepted, if anything was."""
        if self._kept is not None:
            self.point.keep(self._kept)

    def _try(self, direction: Direction, damping: float) -> bool:
        """A trial, or several along the direction; returns True if one was accepted."""
        factor = 1.0
        for _ in range(1 + HALVINGS * self._along):
            values = self.point.moved(direction.step, -factor)
            reduction, loss = self._reduction(values)
            # Along the direction the model of the loss is a parabola; the gain is stated for the whole step.
            wanted = direction.predicted if factor == 1 else factor * direction.slope
            accepted = wanted > 0 and reduction > 0 and reduction >= ACCEPTED * wanted
            if factor == 1 or accepted:
                gain = reduction / wanted if wanted > 0 else -math.inf
                after = loss if accepted else self.residuals.loss
                self.outcome = self.outcome._replace(
                    loss_after=after, accepted=accepted, gain=gain, damping=damping, length=factor
                )
            self.outcome = self.outcome._replace(trials=self._trials)
            if accepted:
                self._kept = values
                return True
            factor = _shorter(factor, reduction, direction.slope)
        return False

    def _reduction(self, values: list[Tensor]) -> tuple[float, float]:
        """By how much the loss falls at these parameters, -inf where it is not finite, and the loss there."""
        self._trials += 1
        self.point.visit(values)
        found = evaluate(self._closure, self._weights, check=False)
        self.point.restore()
        if found.sizes != self.residuals.sizes:
            raise InputError(
                f"the closure returned blocks of {dict(found.sizes)} residuals at a trial, and of "
                f"{dict(self.residuals.sizes)} before: it must return the same residuals until the step is done"
            )
        before, after = self.residuals.values, found.values
        # Not the difference of two sums, which would lose what the last steps gain.
        reduction = 0.5 * float((before - after) @ (before + after))
        return (reduction if math.isfinite(reduction) else -math.inf), found.loss


def _shorter(factor: float, reduction: float, slope: float) -> float:
    """The minimum of the parabola through the loss, its slope, and the loss at `factor`; between a tenth and a half."""
    curvature = factor * slope - reduction
    best = slope * factor**2 / (2 * curvature) if math.isfinite(curvature) and curvature > 0 else 0.0
    return min(max(best, 0.1 * factor), 0.5 * factor)
