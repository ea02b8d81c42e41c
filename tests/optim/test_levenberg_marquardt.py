"""Steps of LevenbergMarquardt against numpy, and what a rejected one leaves."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch

from gramjd.errors import InputError, LossError
from gramjd.optim import LevenbergMarquardt
from tests.oracle import relative_error
from tests.small import F64

from .small_problems import Fit, damped_step, flat, matrix, rosenbrock

WEIGHTS = {"data": 3.0, "bend": torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 4.0])}


def lengths_of(J, parameters, scaling):
    """The diagonal of D."""
    squares = J.square().sum(0)
    if scaling == "none":
        return torch.ones_like(squares)
    if scaling == "coordinate":
        return squares.sqrt()
    return torch.cat([s.mean().sqrt().expand(len(s)) for s in squares.split([p.numel() for p in parameters])])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("width", [2, 3, 8], ids=["n < m", "n > m", "n > 2 m"])
@pytest.mark.parametrize(
    ("solver", "scaling"),
    [("gramian", "none"), ("gramian", "tensor"), ("jacobian", "none"), ("jacobian", "tensor"), ("auto", "coordinate")],
)
def test_a_step_is_the_damped_least_squares_solution(solver, scaling, width, weights):
    problem = Fit(width=width)
    before, blocks = flat(problem.parameters), problem.blocks()
    r = torch.cat([block.detach().reshape(-1) for block in blocks.values()])
    J = matrix(list(blocks.values()), problem.parameters)
    if weights is not None:
        roots = torch.cat([torch.as_tensor(weights[k], dtype=F64).expand(b.numel()) for k, b in blocks.items()]).sqrt()
        J, r = J * roots[:, None], r * roots
    d = lengths_of(J, problem.parameters, scaling)
    optimizer = LevenbergMarquardt(problem.parameters, 0.1, weights=weights, solver=solver, scaling=scaling)
    loss = optimizer.step(problem.blocks)
    step, last = before - flat(problem.parameters), optimizer.last
    expected = damped_step(J, r, last.damping, d)
    assert last.accepted
    assert relative_error(step, expected) < 1e-9
    assert loss.dtype == F64
    assert loss.item() == last.loss == pytest.approx(0.5 * float(r @ r), rel=1e-13)
    assert last.gradient_norm == pytest.approx(float((J.T @ r / d).norm()), rel=1e-9)
    predicted = 0.5 * float(r @ r - (r - J @ step) @ (r - J @ step))
    assert last.gain == pytest.approx((last.loss - last.loss_after) / predicted, rel=1e-7)
    if last.trials == 1:
        assert last.damping == pytest.approx(0.1 * float((J / d).square().sum()) / len(r), rel=1e-12)


@pytest.mark.parametrize("solver", ["gramian", "jacobian"])
def test_the_loss_never_rises_and_is_that_of_the_closure(solver):
    problem = Fit(12)
    optimizer = LevenbergMarquardt(problem.parameters, 1e-6, solver=solver)
    losses = [optimizer.step(problem.data).item() for _ in range(30)]
    assert all(a >= b for a, b in pairwise(losses))
    assert losses[-1] < 1e-2 * losses[0]
    assert optimizer.last.loss_after == pytest.approx(0.5 * problem.data().square().sum().item(), rel=1e-13)


@pytest.mark.parametrize("options", [{}, {"line_search": True}, {"scaling": "tensor"}, {"scaling": "coordinate"}])
def test_rosenbrock(options):
    p = torch.tensor([-1.2, 1.0], dtype=F64, requires_grad=True)
    optimizer = LevenbergMarquardt([p], **options)
    for _ in range(60):
        optimizer.step(lambda: rosenbrock(p))
    assert (p - 1).abs().max() < 1e-10


def test_a_linear_problem_is_solved_at_once():
    torch.manual_seed(0)
    A, y = torch.randn(9, 4, dtype=F64), torch.randn(9, dtype=F64)
    p = torch.zeros(4, dtype=F64, requires_grad=True)
    optimizer = LevenbergMarquardt([p], 1e-14)
    optimizer.step(lambda: A @ p - y)
    assert relative_error(p, torch.linalg.lstsq(A, y[:, None]).solution[:, 0]) < 1e-10
    assert optimizer.last.gain == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["worse", "not finite", "more than the loss"])
def test_a_rejected_step_restores_to_the_bit(kind):
    problem = Fit()
    for p in problem.parameters:
        p.grad = torch.full_like(p, 7.0)
    before, calls = [p.detach().clone() for p in problem.parameters], []

    def closure():
        calls.append(None)
        r = problem.data()
        if len(calls) == 1:
            return r
        return {"worse": 3 * r + 100, "not finite": r / 0, "more than the loss": r * 1e200}[kind]

    optimizer = LevenbergMarquardt(problem.parameters, trials=4)
    loss = optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.parameters, strict=True))
    assert len(calls) == 5
    assert optimizer.last.trials == 4
    assert not optimizer.last.accepted
    assert optimizer.last.loss_after == loss.item()
    assert all((p.grad == 7).all() for p in problem.parameters)
    # 2, 4, 8, 16 times: the last of them is for the next step.
    state = optimizer.state[problem.parameters[0]]
    assert state["damping"] == pytest.approx(16 * optimizer.last.damping)
    optimizer.step(problem.data)
    assert optimizer.last.accepted


def test_lambda_is_raised_until_a_step_is_accepted():
    p = torch.tensor([3.0], dtype=F64, requires_grad=True)  # the Newton step for arctan overshoots from here
    optimizer = LevenbergMarquardt([p], 1e-8)
    optimizer.step(lambda: torch.arctan(p))
    last = optimizer.last
    assert last.accepted
    assert last.trials > 3
    doublings = last.trials - 1
    unit = (1 / (1 + 9.0)) ** 2
    assert last.damping == pytest.approx(1e-8 * unit * 2 ** (doublings * (doublings + 1) // 2), rel=1e-9)


def test_a_line_search_shortens_the_step_first():
    p = torch.tensor([3.0], dtype=F64, requires_grad=True)
    optimizer = LevenbergMarquardt([p], 1e-8, line_search=True)
    optimizer.step(lambda: torch.arctan(p))
    last = optimizer.last
    assert last.accepted
    assert 0 < last.length < 1
    assert last.damping == pytest.approx(1e-8 / 100, rel=1e-9)
    s = math.atan(3.0) * 10 / (1 + 1e-8)
    assert p.item() == pytest.approx(3 - last.length * s, rel=1e-9)
    assert optimizer.state[p]["damping"] > last.damping


@pytest.mark.parametrize("scaling", ["tensor", "coordinate"])
def test_other_units_change_nothing_with_scaling(scaling):
    """Parameters counted in thousandths and in thousands: the same steps, in these units."""

    def path(units):
        p = [torch.tensor(v / u, dtype=F64, requires_grad=True) for v, u in zip((0.5, 0.5), units, strict=True)]
        x = torch.linspace(0, 2, 9, dtype=F64)
        optimizer, found = LevenbergMarquardt(p, scaling=scaling), []
        for _ in range(6):
            optimizer.step(lambda: units[0] * p[0] * torch.exp(-units[1] * p[1] * x) - torch.exp(-2 * x))
            found.append([v.item() * u for v, u in zip(p, units, strict=True)])
        return torch.tensor(found)

    assert relative_error(path((1e-3, 1e3)), path((1.0, 1.0))) < 1e-9


def test_the_largest_lengths_are_kept():
    p = torch.tensor([2.0], dtype=F64, requires_grad=True)
    optimizer = LevenbergMarquardt([p], scaling="coordinate")
    optimizer.step(lambda: p**2)  # the slope, 2 p, falls
    optimizer.step(lambda: p**2)
    assert optimizer.state[p]["lengths"].item() == 4.0


@pytest.mark.parametrize("options", [{}, {"scaling": "tensor"}, {"scaling": "coordinate", "line_search": True}])
def test_a_state_that_is_loaded_goes_on_as_before(options):
    whole, first = Fit(), Fit()
    straight = LevenbergMarquardt(whole.parameters, **options)
    for _ in range(6):
        straight.step(whole.data)
    begun = LevenbergMarquardt(first.parameters, **options)
    for _ in range(3):
        begun.step(first.data)
    saved = copy.deepcopy(begun.state_dict())
    second = Fit()
    second.model.load_state_dict(first.model.state_dict())
    resumed = LevenbergMarquardt(second.parameters)
    resumed.load_state_dict(saved)
    for _ in range(3):
        resumed.step(second.data)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, second.parameters, strict=True))
    assert resumed.last == straight.last


def test_a_state_goes_through_a_file(tmp_path):
    problem = Fit()
    optimizer = LevenbergMarquardt(problem.parameters, scaling="tensor")
    optimizer.step(problem.data)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["state"][0]["damping"] == optimizer.state[problem.parameters[0]]["damping"]


def test_errors_leave_everything_as_it_was():
    problem = Fit()
    optimizer = LevenbergMarquardt(problem.parameters)
    before, calls = flat(problem.parameters).clone(), []

    def breaking():
        calls.append(None)
        if len(calls) > 1:
            raise ZeroDivisionError("of the closure")
        return problem.data()

    def shrinking():
        calls.append(None)
        return problem.data()[: 6 - len(calls)]

    for closure, error, said in (
        (breaking, ZeroDivisionError, "of the closure"),
        (lambda: problem.data() / 0, LossError, "NaN or infinite"),
        (shrinking, InputError, "it must return the same residuals until the step is done"),
    ):
        calls.clear()
        with pytest.raises(error, match=said):
            optimizer.step(closure)
        assert torch.equal(before, flat(problem.parameters))
        assert optimizer.state.get(problem.parameters[0], {}) == {}
        assert optimizer.last is None


def test_frozen_and_unreached_parameters_stay():
    problem = Fit()
    unreached = torch.nn.Parameter(torch.ones(3, dtype=F64))
    problem.parameters[0].requires_grad_(False)
    kept = problem.parameters[0].clone()
    optimizer = LevenbergMarquardt([*problem.parameters, unreached], scaling="tensor", solver="gramian")
    optimizer.step(problem.data)
    assert optimizer.last.accepted
    assert torch.equal(kept, problem.parameters[0])
    assert torch.equal(unreached, torch.ones(3, dtype=F64))


def test_a_parameter_may_be_frozen_between_steps():
    problem = Fit()
    optimizer = LevenbergMarquardt(problem.parameters, scaling="tensor")
    optimizer.step(problem.data)
    damping = optimizer.state[problem.parameters[0]]["damping"]
    problem.parameters[0].requires_grad_(False)
    optimizer.step(problem.data)
    assert optimizer.last.damping >= damping
    problem.parameters[0].requires_grad_(True)
    optimizer.step(problem.data)
    assert optimizer.last.accepted


def test_where_the_gradient_is_zero_nothing_happens():
    p = torch.zeros(2, dtype=F64, requires_grad=True)
    calls = []

    def closure():
        calls.append(None)
        return 1 + p**2

    optimizer = LevenbergMarquardt([p])
    assert optimizer.step(closure).item() == 1.0
    assert len(calls) == 1
    assert (optimizer.last.accepted, optimizer.last.trials, optimizer.last.gradient_norm) == (False, 0, 0.0)
    assert p.tolist() == [0, 0]


def test_a_graph_from_before_the_step_is_refused_afterwards():
    problem = Fit()
    old = problem.model(problem.x).sum()
    LevenbergMarquardt(problem.parameters).step(problem.data)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()


def test_float32_parameters():
    problem = Fit(12, dtype=torch.float32)
    optimizer = LevenbergMarquardt(problem.parameters)
    losses = [optimizer.step(problem.data).item() for _ in range(20)]
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.dtype == torch.float32 for p in problem.parameters)
