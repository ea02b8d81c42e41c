"""Thousands of residuals of a differential equation, between samples."""

from __future__ import annotations

import pytest
import torch

from gramjd.optim import LevenbergMarquardt
from gramjd.optim.jacobian import DenseJacobian, WalkedJacobian, jacobian_of
from gramjd.optim.parameters import trained
from gramjd.optim.residuals import evaluate
from tests.oracle import relative_error

from .small_problems import Fit, damped_step, flat


@pytest.mark.slow
def test_four_thousand_residuals():
    """One step with m = 4096 by walks, against QR of the matrix with n rows more."""
    problem = Fit(2048, width=12)
    before, J = (
        flat(problem.parameters),
        DenseJacobian(evaluate(problem.blocks, None), trained(problem.parameters), None),
    )
    assert J.matrix.shape == (4096, 49)
    optimizer = LevenbergMarquardt(problem.parameters, 1e-3, solver="gramian")
    optimizer.step(problem.blocks)
    assert optimizer.last.accepted
    expected = damped_step(J.matrix, J.residuals.values, optimizer.last.damping)
    assert relative_error(before - flat(problem.parameters), expected) < 1e-6


@pytest.mark.slow
def test_a_wide_network_keeps_no_rows():
    """n = 133,000 and m = 512: J would be 545 MB."""
    problem = Fit(512, width=256)
    problem.model.insert(2, torch.nn.Linear(256, 512, dtype=torch.float64))
    problem.model.insert(3, torch.nn.Tanh())
    problem.model[4] = torch.nn.Linear(512, 1, dtype=torch.float64)
    problem.y = problem.x.detach().sum(1, keepdim=True).sin()
    assert isinstance(jacobian_of(evaluate(problem.data, None), trained(problem.parameters)), WalkedJacobian)
    optimizer = LevenbergMarquardt(problem.parameters, 1e-4)
    losses = [optimizer.step(problem.data).item() for _ in range(4)]
    assert optimizer.last.loss_after < 0.1 * losses[0]
