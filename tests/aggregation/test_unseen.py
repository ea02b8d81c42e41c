"""Weightings that never wait for the device: nothing is read, the answers are the same, and no Gramian gives NaN."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gramjd.aggregation import (
    CRMOGM,
    MGDA,
    CAGrad,
    ExcessMTL,
    FairGrad,
    GaussNewton,
    GradVac,
    Krum,
    MoDo,
    NashMTL,
    Nested,
    PCGrad,
    SDMGrad,
    _look,
)
from gramjd.aggregation.solvers.simplex import distance_to_conflict

from .optimality import KINDS, jacobian
from .test_conic import small_jacobians
from .test_fixed import NothingIsRead

SOLVED = {
    "MGDA": MGDA(),
    "CAGrad(0.4)": CAGrad(0.4),
    "CAGrad(1)": CAGrad(1.0),
    "NashMTL": NashMTL(),
    "FairGrad(0.5)": FairGrad(0.5),
    "FairGrad(2)": FairGrad(2.0),
}
# What each keeps from call to call starts anew in every test: a function that makes one.
OTHERS = {
    "Krum": lambda: Krum(1),
    "PCGrad": lambda: PCGrad(seed=0),
    "GradVac": lambda: GradVac(seed=0),
    "MoDo": MoDo,
    "SDMGrad": SDMGrad,
    "ExcessMTL": ExcessMTL,
    "CRMOGM": lambda: CRMOGM(MGDA()),
    "GaussNewton": GaussNewton,
    "Nested": lambda: Nested(MGDA(), NashMTL()),
}
ALL = {name: (lambda weighting=weighting: weighting) for name, weighting in SOLVED.items()} | OTHERS
NO_GRAMIANS = {
    "nan": torch.full((4, 4), math.nan),
    "infinite": torch.eye(4).index_fill(0, torch.tensor([1]), math.inf),
    "asymmetric": torch.eye(4) + torch.triu(torch.full((4, 4), 0.5), 1),
    "too large beside the diagonal": torch.eye(4) - 3 * torch.eye(4).flip(0),
}


@pytest.fixture
def unseen(monkeypatch):
    """The CPU treated as a device whose values are not looked at."""
    monkeypatch.setattr(_look, "READ_FREELY", ())


def weighted(weighting, G):
    """The weights; losses, where they are asked for, in pairs."""
    return weighting(G, torch.ones(len(G) // 2, 2)) if getattr(weighting, "takes_losses", False) else weighting(G)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_read_from_the_device(unseen, name, dtype):
    J = jacobian("wide", 6, seed=0).to(dtype)
    weighting = ALL[name]()
    with NothingIsRead():
        w = weighted(weighting, J @ J.mT)
        again = weighted(weighting, J @ J.mT)
    assert w.isfinite().all()
    assert again.isfinite().all()


@pytest.mark.parametrize("name", SOLVED)
def test_where_values_may_be_looked_at_something_is(name):
    J = jacobian("wide", 6, seed=0)
    with pytest.raises(AssertionError, match="waits for the device"), NothingIsRead():
        weighted(ALL[name](), J @ J.mT)


@pytest.mark.parametrize("bad", NO_GRAMIANS)
@pytest.mark.parametrize("name", ALL)
def test_what_is_no_gramian_gives_nan(unseen, name, bad):
    w = weighted(ALL[name](), NO_GRAMIANS[bad])
    assert w.shape == (4,)
    assert w.isnan().any()


@pytest.mark.parametrize("name", ["GradVac", "MoDo", "SDMGrad", "ExcessMTL"])
def test_what_is_no_gramian_leaves_what_is_kept(unseen, name):
    J = jacobian("wide", 4, seed=0)
    weighting = ALL[name]()
    weighted(weighting, J @ J.mT)
    kept = {key: value.clone() for key, value in weighting._kept.items()}
    assert weighted(weighting, NO_GRAMIANS["nan"]).isnan().any()
    assert kept
    assert all(torch.equal(value, weighting._kept[key]) for key, value in kept.items())


def both(weighting, G, monkeypatch):
    """The weights where values may be looked at, and where not."""
    seen = weighting(G)
    with monkeypatch.context() as patch:
        patch.setattr(_look, "READ_FREELY", ())
        return seen, weighting(G)


# What an update is measured by where it is nearly zero.
UNITS = {
    "MGDA": lambda G: G.diagonal().amin().sqrt(),
    "CAGrad(0.4)": lambda G: G.diagonal().sqrt().mean(),
    "CAGrad(1)": lambda G: G.diagonal().sqrt().mean(),
    "NashMTL": lambda G: math.sqrt(len(G)),
}


def gap(name, J, monkeypatch):
    """How far the updates are apart, relative to their length: measured on J, as G loses half of a length's digits."""
    G = J @ J.mT
    a, b = both(SOLVED[name], G, monkeypatch)
    assert a.isfinite().all()
    assert b.isfinite().all()

    def length(w):
        return torch.linalg.vector_norm(w @ J)

    unit = UNITS[name](G) if name in UNITS else 0.0
    return float(length(a - b) / (length(a) + unit + 1e-300))


@pytest.mark.parametrize("name", SOLVED)
@settings(derandomize=True, deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(J=small_jacobians([kind for kind in KINDS if kind != "decay"], most=10))
def test_the_same_without_looking(monkeypatch, name, J):
    assert gap(name, J, monkeypatch) <= 1e-7


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "decay"])
@pytest.mark.parametrize("name", SOLVED)
def test_the_same_on_larger_gramians(monkeypatch, name, kind):
    J = jacobian(kind, 50, seed=1)
    assert gap(name, J, monkeypatch) <= 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVED)
def test_the_same_on_thousands_of_gramians(monkeypatch, name):
    g = torch.Generator().manual_seed(0)
    kinds = [kind for kind in KINDS if kind != "decay"]
    for seed in range(2000):
        m = int(torch.randint(1, 24, (), generator=g))
        J = jacobian(kinds[seed % len(kinds)], m, seed)
        J = J - float(torch.rand((), generator=g)) * J.mean(0)
        J = J * 10.0 ** torch.empty(m, 1, dtype=torch.float64).uniform_(-1.5, 1.5, generator=g)
        assert gap(name, J, monkeypatch) <= (1e-5 if nearly_stationary(J @ J.mT) else 1e-7), (seed, m)


def nearly_stationary(G):
    """Whether the best direction for all has cosines of less than 1e-4: its digits are those that C loses."""
    alive = G.diagonal() > 0
    lengths = torch.where(alive, G.diagonal(), 1.0).sqrt()
    C = G / torch.outer(lengths, lengths) + torch.diag((~alive).double())
    return 0 < distance_to_conflict(C, alive, torch.finfo(G.dtype).eps, look=True) < 1e-8
