"""SPRING against its formula, and against GaussNewton where it has no momentum."""

from __future__ import annotations

import copy

import pytest
import torch

from gramjd import GaussNewton, gram_backward
from gramjd.errors import AggregatorError, InputError
from gramjd.optim import SPRING
from tests.oracle import relative_error
from tests.small import F64

from .small_problems import Fit, flat, matrix


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("width", [3, 12], ids=["matrix", "walks"])
@pytest.mark.parametrize("weights", [None, {"data": 2.0, "bend": 0.5}], ids=["plain", "weighted"])
def test_steps_are_those_of_the_formula(weights, width, relative):
    problem = Fit(width=width)
    n = sum(p.numel() for p in problem.parameters)
    assert (n <= 4 * 12) is (width == 3)
    mu, lr, damping, phi = 0.8, 0.3, 0.05, torch.zeros(n, dtype=F64)
    optimizer = SPRING(problem.parameters, lr, mu, damping, relative=relative, weights=weights)
    for _ in range(4):
        blocks, before = problem.blocks(), flat(problem.parameters)
        r = torch.cat([block.detach().reshape(-1) for block in blocks.values()])
        J = matrix(list(blocks.values()), problem.parameters)
        if weights is not None:
            roots = torch.cat([torch.full((b.numel(),), weights[k], dtype=F64) for k, b in blocks.items()]).sqrt()
            J, r = J * roots[:, None], r * roots
        lam = damping * float(J.square().sum()) / len(r) if relative else damping
        # The stated minimum: |r - J phi'|^2 + lambda |phi' - mu phi|^2.
        shifted = torch.linalg.solve(J.T @ J + lam * torch.eye(n, dtype=F64), J.T @ r + lam * mu * phi)
        phi = mu * phi + J.T @ torch.linalg.solve(J @ J.T + lam * torch.eye(len(r), dtype=F64), r - mu * J @ phi)
        assert relative_error(phi, shifted) < 1e-9
        loss = optimizer.step(problem.blocks)
        assert relative_error(before - flat(problem.parameters), lr * phi) < 1e-9
        assert loss.item() == pytest.approx(0.5 * float(r @ r))
        last = optimizer.last
        assert (last.damping, last.rate) == (pytest.approx(lam), lr)
        assert last.direction_norm == pytest.approx(float(phi.norm()))


@pytest.mark.parametrize("points", [2, 8], ids=["walks", "matrix"])
def test_without_momentum_it_is_gauss_newton_and_sgd(points):
    one, other = Fit(points), Fit(points)
    spring = SPRING(one.parameters, lr=0.7, momentum=0.0, damping=1e-2)
    sgd = torch.optim.SGD(other.parameters, lr=0.7)
    for _ in range(3):
        spring.step(one.data)
        sgd.zero_grad()
        gram_backward(other.data(), GaussNewton(damping=1e-2), inputs=other.model)
        sgd.step()
    assert relative_error(flat(one.parameters), flat(other.parameters)) < 1e-10


def test_batches_add_up_as_in_kaczmarz_method():
    """Rows one at a time find the solution of a consistent system; without momentum they do so slower."""
    torch.manual_seed(0)
    A, truth = torch.randn(6, 6, dtype=F64), torch.randn(6, dtype=F64)
    y, errors = A @ truth, {}
    for momentum in (0.0, 0.9):
        p = torch.zeros(6, dtype=F64, requires_grad=True)
        optimizer = SPRING([p], lr=1.0 if not momentum else 0.3, momentum=momentum, damping=1e-3)
        for k in range(120):
            optimizer.step(lambda k=k, p=p: A[k % 6 : k % 6 + 1] @ p - y[k % 6])
        errors[momentum] = ((p - truth).norm() / truth.norm()).item()
    assert errors[0.9] < 0.5 * errors[0.0]


def test_a_bound_on_the_step():
    problem = Fit()
    before = flat(problem.parameters)
    optimizer = SPRING(problem.parameters, lr=1.0, damping=1e-6, max_norm=0.01)
    optimizer.step(problem.data)
    assert float((before - flat(problem.parameters)).norm()) == pytest.approx(0.01)
    assert optimizer.last.rate == pytest.approx(0.01 / optimizer.last.direction_norm)


def test_a_scheduler_changes_the_rate():
    problem = Fit()
    optimizer = SPRING(problem.parameters, lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    rates = []
    for _ in range(3):
        optimizer.step(problem.data)
        scheduler.step()
        rates.append(optimizer.last.rate)
    assert rates == [0.4, 0.2, 0.1]


def test_a_state_that_is_loaded_goes_on_as_before():
    whole, first, second = Fit(), Fit(), Fit()
    straight, begun = SPRING(whole.parameters), SPRING(first.parameters)
    for _ in range(4):
        straight.step(whole.data)
    for _ in range(2):
        begun.step(first.data)
    second.model.load_state_dict(first.model.state_dict())
    resumed = SPRING(second.parameters, lr=9.0)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    for _ in range(2):
        resumed.step(second.data)
    assert torch.equal(flat(whole.parameters), flat(second.parameters))


def test_gradients_of_zero_leave_momentum_alone():
    p = torch.zeros(2, dtype=F64, requires_grad=True)
    optimizer = SPRING([p], lr=1.0, momentum=0.5)
    optimizer.step(lambda: p - 1)
    moved = p.detach().clone()
    optimizer.step(lambda: p * 0 + 1)
    assert relative_error(p - moved, 0.5 * moved) < 1e-12


def test_singular_systems_are_refused_and_change_nothing():
    p = torch.ones(2, dtype=F64, requires_grad=True)
    optimizer = SPRING([p], damping=1e-30)
    with pytest.raises(AggregatorError, match="singular up to rounding with damping=1e-30: raise the damping"):
        optimizer.step(lambda: torch.stack([p.sum(), p.sum()]))
    assert p.tolist() == [1, 1]
    assert optimizer.last is None
    assert not any(optimizer.state.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.0}, "lr must be a number above 0; got 0.0"),
        ({"momentum": 1.0}, "momentum must be a number from 0 to below 1; got 1.0"),
        ({"damping": -1.0}, "damping must be a number above 0; got -1.0"),
        ({"max_norm": 0}, "max_norm must be a number above 0; got 0"),
    ],
)
def test_options(options, said):
    with pytest.raises(InputError) as raised:
        SPRING([torch.ones(2, requires_grad=True)], **options)
    assert said in str(raised.value)
