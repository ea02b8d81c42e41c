"""What each aggregator says of scale: `scale_free` is true exactly where no scale of the losses changes the weights."""

import inspect
import re

import pytest
import torch

from gramjd import aggregation
from gramjd.aggregation import (
    CRMOGM,
    MGDA,
    PCD,
    CAGrad,
    Constant,
    Coordinatewise,
    FairGrad,
    GaussNewton,
    GradDrop,
    Krum,
    LossWeighting,
    MoDo,
    NashMTL,
    Nested,
    SDMGrad,
    Sven,
    TrimmedMean,
    UPGrad,
    Weighting,
)
from gramjd.aggregation._weighting import weigh

M = 6
# Those that need options, or whose options decide.
WITH_OPTIONS = [
    UPGrad(tol=1e-3),
    UPGrad(ridge=1e-4),
    UPGrad(negligible=0.3),
    CAGrad(0.4),
    Constant([1.0, -2.0, 3.0, 4.0, 5.0, 6.0]),
    FairGrad(0.5),
    FairGrad(1.0),
    FairGrad(3.0),
    Krum(1, 2),
    TrimmedMean(1),
    GradDrop([0.5] * M),
    GaussNewton(0.1, relative=False),
    Sven(rank=2),
    PCD(0.1, beta=0.0),
    SDMGrad(batches=3),
    MoDo(batches=2),
    CRMOGM(UPGrad()),
    CRMOGM(MoDo()),
    CRMOGM(lambda G: G.diagonal()),
    Nested(MGDA(), UPGrad()),
    Nested(NashMTL(), lambda G: G.diagonal()),
    Nested(UPGrad(), MoDo()),
    Nested(UPGrad(), lambda G: G.diagonal()),
]
ABSTRACT = (Weighting, LossWeighting, Coordinatewise)


def without_options():
    """One of each class whose options can all be left out."""
    classes = [getattr(aggregation, name) for name in aggregation.__all__]
    for kind in classes:
        needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty and p.kind < 2]
        if kind not in ABSTRACT and not needed:
            yield kind()


ALL = [*without_options(), *WITH_OPTIONS]


def name(aggregator):
    """Its repr, without the addresses of functions."""
    return re.sub(r" at 0x\w+", "", repr(aggregator))


def updates(aggregator, scales):
    """The updates over the scale for the same Jacobians, one per scale, in a row of calls from the start."""
    torch.manual_seed(0)
    if callable(getattr(aggregator, "reset", None)):
        aggregator.reset()
    found = []
    for k, s in enumerate(scales):
        J = torch.randn(M, 9, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        J = s * (J - 0.8 * J.mean(0)) * torch.logspace(0, 1, M, dtype=torch.float64)[:, None]
        losses = (s * torch.arange(1.0, M + 1, dtype=torch.float64)).reshape(2, 3)
        if isinstance(aggregator, Coordinatewise):
            found.append(aggregator.aggregate(J) / s)
        else:
            found.append(weigh(aggregator, J @ J.mT, losses))
    return torch.stack(found)


@pytest.mark.parametrize("aggregator", ALL, ids=name)
def test_scale_free_is_what_it_says(aggregator):
    plain = updates(aggregator, [1.0, 1.0, 1.0])
    same = True
    for scales in ([2.0**20, 2.0**20, 2.0**19], [1.0, 3.0, 3.0], [1e-6, 1e-6, 1e-3]):
        scaled = updates(aggregator, scales)
        same &= bool(((scaled - plain).abs() <= 1e-6 * plain.abs().amax(1, keepdim=True)).all())
    assert aggregator.scale_free in (same, None)


@pytest.mark.parametrize("aggregator", ALL, ids=name)
def test_nothing_is_stated_of_plain_functions_only(aggregator):
    assert (aggregator.scale_free is None) == ("<function" in repr(aggregator) and "NashMTL" not in repr(aggregator))


def test_a_weighting_of_ones_own_states_nothing_until_it_does():
    class Own(Weighting):
        def __call__(self, G):
            return G.diagonal()

    assert Own().scale_free is None
    assert CRMOGM(Own()).scale_free is None
    Own._scale_free = False
    assert CRMOGM(Own()).scale_free is False
    assert Nested(UPGrad(), Own()).scale_free is False


def test_every_class_is_here():
    concrete = {name for name in aggregation.__all__ if getattr(aggregation, name) not in ABSTRACT}
    assert {type(aggregator).__name__ for aggregator in ALL} == concrete
