"""Both forms of J against the oracle: Gramian, products, lengths."""

from __future__ import annotations

import pytest
import torch

from gramjd.errors import BudgetError, InputError
from gramjd.optim.jacobian import SMALL, DenseJacobian, Jacobian, WalkedJacobian, jacobian_of
from gramjd.optim.parameters import trained
from gramjd.optim.residuals import evaluate
from tests.oracle import relative_error
from tests.small import F64

from .small_problems import Fit, Spread, flat, matrix


def spread():
    torch.manual_seed(0)
    model, tokens = Spread(), torch.randint(7, (3, 5))
    return list(model.parameters()), lambda: model(tokens)


def fit():
    problem = Fit()
    return problem.parameters, problem.blocks


CASES = {"every kind": (spread, None), "second derivatives": (fit, {"data": 2.0, "bend": torch.arange(1.0, 7.0)})}


@pytest.mark.parametrize("form", [DenseJacobian, WalkedJacobian])
@pytest.mark.parametrize("name", CASES)
def test_forms_agree_with_the_oracle(name: str, form: type[Jacobian]) -> None:
    make, weights = CASES[name]
    parameters, closure = make()
    residuals = evaluate(closure, weights)
    J = matrix(residuals.parts, parameters)
    if residuals.roots is not None:
        J = J * residuals.roots[:, None]
    found = form(residuals, trained(parameters), None)
    w, v = torch.randn(len(J), dtype=F64), [torch.randn_like(p) for p in parameters]
    assert relative_error(found.gramian(), J @ J.T) < 1e-12
    assert relative_error(flat(found.pull(w)), J.T @ w) < 1e-12
    assert [part.shape for part in found.pull(w)] == [p.shape for p in parameters]
    assert relative_error(found.push(v), J @ flat(v)) < 1e-12
    means = [
        part.square().sum().div(p.numel()).sqrt() for part, p in zip(columns(J, parameters), parameters, strict=True)
    ]
    assert relative_error(torch.stack(found.lengths("tensor")), torch.stack(means)) < 1e-12
    d = [torch.rand((), dtype=F64) + 0.5 for _ in parameters]
    D = torch.cat([x.expand(p.numel()) for x, p in zip(d, parameters, strict=True)])
    assert relative_error(found.gramian(d), (J / D) @ (J / D).T) < 1e-12


def columns(J, parameters):
    return J.split([p.numel() for p in parameters], 1)


def test_the_matrix_and_its_columns() -> None:
    parameters, closure = fit()
    residuals = evaluate(closure, None)
    J, found = matrix(residuals.parts, parameters), DenseJacobian(residuals, trained(parameters), None)
    assert relative_error(found.matrix, J) < 1e-13
    assert relative_error(flat(found.lengths("coordinate")), J.square().sum(0).sqrt()) < 1e-13


def test_the_graph_stays_usable() -> None:
    parameters, closure = fit()
    residuals = evaluate(closure, None)
    first = jacobian_of(residuals, trained(parameters))
    assert torch.equal(first.gramian(), jacobian_of(residuals, trained(parameters)).gramian())


@pytest.mark.parametrize(("points", "form"), [(2, WalkedJacobian), (6, DenseJacobian)])
def test_the_form_is_chosen_by_size(points: int, form: type[Jacobian]) -> None:
    problem = Fit(points)
    n, residuals = sum(p.numel() for p in problem.parameters), evaluate(problem.data, None)
    assert (n <= SMALL * points) is (form is DenseJacobian)
    assert type(jacobian_of(residuals, trained(problem.parameters))) is form


def test_a_walk_makes_no_row_of_a_wide_layer() -> None:
    """The matrix has m n numbers, and the Gramian needs none of them."""
    layer = torch.nn.Linear(40, 50, dtype=F64)
    x = torch.randn(8, 40, dtype=F64)
    residuals = evaluate(lambda: layer(x).sin().sum(1), None)
    largest: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if hasattr(t, "numel"))
            return out

    with Sizes():
        J = WalkedJacobian(residuals, trained(layer.parameters()), None)
        J.gramian()
        J.pull(torch.ones(8, dtype=F64))
    assert max(largest) == 40 * 50
    with Sizes():
        DenseJacobian(residuals, trained(layer.parameters()), None)
    assert max(largest) == 8 * (40 * 50 + 50)


def test_rows_beyond_the_budget_are_refused() -> None:
    model = torch.nn.BatchNorm1d(50, dtype=F64)
    x = torch.randn(16, 50, dtype=F64)
    residuals = evaluate(lambda: model(x.requires_grad_()).sum(1), None)
    with pytest.raises(BudgetError, match='raise memory_budget, or take solver="gramian"'):
        DenseJacobian(residuals, trained(model.parameters()), 1000)


def test_nothing_reached() -> None:
    p, q = (torch.ones(2, dtype=F64, requires_grad=True) for _ in range(2))
    residuals = evaluate(lambda: p * 2, None)
    with pytest.raises(InputError, match="no loss reaches any parameter"):
        jacobian_of(residuals, trained([q]))
