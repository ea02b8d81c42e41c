"""Cotangents that are written over: only where nobody else has them, and then without new memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gramjd
from gramjd.engine import rules
from gramjd.engine.cotangent import Group, added
from gramjd.engine.rows import dense
from gramjd.engine.rules import pointwise
from tests.oracle import assert_close_gramian, oracle_gramian

ACTIVATIONS = [F.relu, torch.tanh, torch.sigmoid, F.silu, F.gelu, F.elu, F.selu, F.leaky_relu]


def chain(act, inner: int = 6) -> tuple[nn.Linear, nn.Linear, nn.Linear, Tensor]:
    torch.manual_seed(0)
    a, b, c = (nn.Linear(*sizes, dtype=torch.float64) for sizes in ((5, inner), (inner, inner), (inner, 3)))
    return a, b, c, torch.randn(7, 5, dtype=torch.float64)


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """The names of the nodes that wrote over what they were given."""
    seen: list[str] = []

    def note(formula):
        def noted(visit, c):
            seen.append(visit.name)
            return formula(visit, c)

        return noted

    for name, formula in pointwise._FORMULAS.items():
        rule = pointwise.overwriting(note(formula), name == "Gelu")
        monkeypatch.setitem(rules.TABLE, f"{name}Backward0", rule)
    return seen


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
def test_activations_between_layers_are_written_over_and_right(written, act):
    a, b, c, x = chain(act)
    losses = c(act(b(act(a(x))))).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert len(written) == 2


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
def test_what_a_residual_shares_is_left_alone(written, act):
    a, b, c, x = chain(act)
    h = a(x)
    losses = c(h + act(h) + act(b(h + act(h)))).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
def test_stacked_rows_are_written_over_and_right(written, act):
    a, b, c, x = chain(act)
    losses = c(act(b(act(a(x))))).square().mean(0)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert len(written) == (0 if act is F.gelu else 1)


@pytest.mark.parametrize("update", gramjd.backward.UPDATES)
def test_rows_that_are_asked_for_stay(written, update):
    a, b, c, x = chain(F.relu)
    h = F.relu(a(x))
    losses = c(F.tanh(b(h))).square().sum(1)
    inputs = [h, *b.parameters(), *c.parameters()]
    expected = oracle_gramian(losses, inputs)
    whole = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)
    step = gramjd.gram_backward(losses, gramjd.Sum(), inputs=inputs, update=update)
    assert_close_gramian(step.gramian, expected, 1e-12)
    for t, g in zip(inputs, whole, strict=True):
        torch.testing.assert_close(t.grad, g, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
def test_hooked_and_expanded_cotangents_are_left_alone(written):
    a, b, _, x = chain(F.relu)
    h = F.relu(a(x))
    h.register_hook(lambda g: 2 * g)
    losses = F.relu(b(h)).sum(1)  # its cotangent is one number, expanded
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert written == []


def test_sums_go_to_memory_that_is_owned():
    layout = dense(torch.arange(2).numpy(), 3)

    def group(number: float, owned: bool) -> Group:
        return Group(layout, torch.full((2, 3), number), owned=owned)

    for one, other in ((False, False), (False, True), (True, False), (True, True)):
        a, b = group(1.0, one), group(2.0, other)
        total = added(a, b)
        assert torch.equal(total.values, torch.full((2, 3), 3.0))
        assert total.owned
        assert one or torch.equal(a.values, torch.ones(2, 3))
        assert other or torch.equal(b.values, torch.full((2, 3), 2.0))
        assert (total is a, total is b) == (one, other and not one)
