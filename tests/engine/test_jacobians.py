"""Jacobians as values: kept, taken apart into plain tensors, sent and built again, they give the same of everything."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from gramjd.engine import compute
from gramjd.engine.consumers.gramian import Diagonal, Gramian
from gramjd.engine.factor import Factor
from gramjd.engine.graph import Edge
from gramjd.engine.memory import NO_LIMITS, Meter
from gramjd.engine.parameter import Jacobian
from gramjd.engine.walk import walked
from tests.oracle import assert_close_gramian, oracle_gramian, oracle_jacobian
from tests.zoo import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
# Those of float64 throughout: they have no tolerance of their own.
EXACT = [c for c in CASES.values() if torch.float64 in c.dtypes and c.tol is None and not c.slow and not c.may_refuse]
CHOSEN = EXACT[::7]


def jacobians(case: Case) -> tuple[list[Tensor], list[Tensor], list[Jacobian]]:
    """Losses, inputs that were reached, and their Jacobians."""
    given, inputs = case.make(torch.float64)
    losses = [given] if isinstance(given, Tensor) else list(given)
    graph = compute.read(losses, inputs, everything=True)
    found: dict[Edge, Jacobian] = {}
    walked(graph, losses, found.__setitem__, Meter(NO_LIMITS))
    return losses, [graph.targets[edge] for edge in found], list(found.values())


def gramian_of(losses: list[Tensor], parts: list[Jacobian]) -> Tensor:
    total = Gramian(sum(loss.numel() for loss in losses), torch.device("cpu"), torch.float64)
    for jacobian in parts:
        total.add_share(jacobian)
    return total.finished()


def rebuilt(factor: Factor) -> Factor:
    """From what can be sent: plain tensors, and everything else as bytes."""
    tensors = [t.clone() for t in factor.tensors]
    bare = pickle.loads(pickle.dumps(factor.with_tensors([t.new_empty(0) for t in tensors])))
    return bare.with_tensors(tensors)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_a_jacobian_is_a_value(case: Case) -> None:
    losses, inputs, found = jacobians(case)
    expected = oracle_gramian(losses, inputs)
    limit = max(case.tol or 0, 1e-11)
    assert_close_gramian(gramian_of(losses, found), expected, limit)
    sent = [Jacobian(one.shape, [rebuilt(f) for f in one.factors]) for one in found]
    assert_close_gramian(gramian_of(losses, sent), expected, limit)
    moved = [one.to(torch.device("cpu")) for one in sent]
    norms = Diagonal(len(expected), torch.device("cpu"), torch.float64)
    for jacobian in moved:
        norms.add_share(jacobian)
    torch.testing.assert_close(norms.finished(), expected.diagonal(), rtol=limit, atol=limit * float(expected.norm()))


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_the_weighted_sum_of_rows(case: Case) -> None:
    losses, inputs, found = jacobians(case)
    m = sum(loss.numel() for loss in losses)
    w = torch.linspace(-1, 1, m, dtype=torch.float64)
    for jacobian, J in zip(found, oracle_jacobian(losses, inputs), strict=True):
        mine, expected = jacobian.combined(w), torch.tensordot(w.to(J.dtype), J, 1)
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-10 * (1 + float(J.abs().max())))
