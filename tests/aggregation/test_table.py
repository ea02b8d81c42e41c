"""What holds for every weighting made from the Gramian: scale, order, dtype, awkward and refused Gramians, repr."""

import doctest
import importlib
import sys

import pytest
import torch

from gramjd.aggregation import (
    CRMOGM,
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    ExcessMTL,
    FairGrad,
    GaussNewton,
    GradDrop,
    GradVac,
    Krum,
    Mean,
    MoDo,
    NashMTL,
    Nested,
    PCGrad,
    Random,
    SDMGrad,
    Sven,
    TrimmedMean,
    UPGrad,
)

from .optimality import jacobian

ALL = [
    DualProj(),
    MGDA(),
    IMTLG(),
    CAGrad(0.4),
    CAGrad(2),
    NashMTL(),
    FairGrad(0.5),
    FairGrad(3.0),
    AlignedMTL("min"),
    AlignedMTL("median"),
    AlignedMTL("rmse"),
    ConFIG(),
    Krum(1, 2),
    PCGrad(),
]
# The update of these does not grow with the gradients in proportion, only its direction stays.
BARGAINS = (NashMTL, FairGrad)
# These keep something from call to call.
KEEPING = [
    MoDo(),
    SDMGrad(),
    SDMGrad(0.5, [1.0, 2.0], batches=2),
    ExcessMTL(),
    PCD(0.1),
    PCD([0.5]),
    GradVac(),
    CRMOGM(MGDA()),
]
# These are given the losses beside G.
WITH_LOSSES = [
    GaussNewton(),
    GaussNewton(0.5, False),
    Sven(),
    Sven(0.1, 2),
    Nested(),
    Nested(MGDA(), Mean(), "samples"),
]
COORDINATEWISE = [GradDrop(), GradDrop([0.5, 0.0], seed=3), TrimmedMean(1)]
WITHOUT_OPTIONS = [w for w in ALL if not isinstance(w, Krum)]


def seeded(weighting, G):
    torch.manual_seed(5)
    return weighting(G)


@pytest.mark.parametrize("weighting", ALL, ids=repr)
@pytest.mark.parametrize("kind", ["wide", "low", "half space"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_scale_of_all_gradients_changes_nothing(weighting, kind, scale):
    J = jacobian(kind, 7, seed=3)
    w, scaled = seeded(weighting, J @ J.mT), seeded(weighting, J @ J.mT * scale**2)
    if isinstance(weighting, BARGAINS) and bool(w.any()):
        w, scaled = w / w.sum(), scaled / scaled.sum()
    torch.testing.assert_close(J.mT @ scaled, J.mT @ w, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weighting", [w for w in ALL if not isinstance(w, PCGrad)], ids=repr)
@pytest.mark.parametrize("kind", ["wide", "low", "half space", "zero rows"])
def test_the_order_of_the_losses_does_not_matter(weighting, kind):
    J = jacobian(kind, 9, seed=4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    w, shuffled = weighting(J @ J.mT), weighting((J @ J.mT)[order][:, order])
    # Weights below a singular G are not unique for those that minimise; the update they make is.
    torch.testing.assert_close(J[order].mT @ shuffled, J.mT @ w, rtol=1e-7, atol=1e-8)
    if kind == "wide":
        torch.testing.assert_close(shuffled, w[order], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("weighting", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_of_the_gramian_but_never_16_bit(weighting, dtype):
    J = jacobian("wide", 6, seed=0).to(dtype)
    G = (J.double() @ J.double().mT).to(dtype)
    w = seeded(weighting, G.requires_grad_())
    assert w.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert not w.requires_grad
    if dtype == torch.float32:
        torch.testing.assert_close(w.double(), seeded(weighting, G.detach().double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", [w for w in WITHOUT_OPTIONS if not isinstance(w, AlignedMTL)], ids=repr)
@pytest.mark.parametrize("m", [4, 32])
def test_16_bit_gramians_are_rough_but_not_taken_for_singular(weighting, m):
    J = torch.randn(m, 40 * m, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w, exact = seeded(weighting, (J @ J.mT).bfloat16()).double(), seeded(weighting, J @ J.mT)
    torch.testing.assert_close(w / w.sum(), exact / exact.sum(), rtol=0.2, atol=0.1 / m)


@pytest.mark.parametrize("weighting", WITHOUT_OPTIONS, ids=repr)
def test_one_loss_is_gradient_descent_up_to_its_rate(weighting):
    w = weighting(torch.tensor([[4.0]], dtype=torch.float64))
    expected = {"NashMTL": 0.5, "FairGrad": 4 ** (-1 / (1 + 1 / getattr(weighting, "_alpha", 1)))}
    if isinstance(weighting, CAGrad):
        assert w.item() == pytest.approx(1 + weighting._c)
    else:
        assert w.item() == pytest.approx(expected.get(type(weighting).__name__, 1.0), rel=1e-12)


@pytest.mark.parametrize("weighting", WITHOUT_OPTIONS, ids=repr)
def test_no_losses_no_weights(weighting):
    assert weighting(torch.zeros(0, 0)).shape == (0,)


@pytest.mark.parametrize("weighting", ALL, ids=repr)
@pytest.mark.parametrize(
    "kind", ["rank one", "duplicates", "opposites", "almost equal", "zero rows", "zero", "decay", "full"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_awkward_gramians_give_finite_weights(weighting, kind, dtype):
    for m in (4, 8):
        J = jacobian(kind, m, seed=m).to(dtype)
        w = weighting(J @ J.mT)
        assert w.isfinite().all()
        if kind == "zero" and not isinstance(weighting, (DualProj, MGDA, CAGrad, Krum, PCGrad)):
            assert not w.any()


@pytest.mark.parametrize("weighting", [DualProj(), MGDA(), CAGrad(1.0), NashMTL(), FairGrad(0.5)], ids=repr)
@pytest.mark.parametrize("kind", ["wide", "full", "low", "half space", "opposites", "zero rows"])
def test_the_non_conflicting_ones_conflict_with_no_gradient(weighting, kind):
    for seed in range(4):
        J = jacobian(kind, 8, seed)
        update = weighting.aggregate(J)
        room = 1e-8 * J.norm(dim=1).sum() * J.norm(dim=1)
        assert (J @ update >= -room).all()


@pytest.mark.parametrize("weighting", [ConFIG(), PCGrad()], ids=repr)
def test_linear_under_scaling_of_the_rows(weighting):
    J = jacobian("wide", 6, seed=0)
    g = torch.Generator().manual_seed(2)
    c, d = torch.rand(2, 6, 1, generator=g, dtype=torch.float64) * 10 + 1e-3

    def update(scales):
        torch.manual_seed(3)
        return weighting.aggregate(scales * J)

    torch.testing.assert_close(update(c + 3 * d), update(c) + 3 * update(d))


@pytest.mark.parametrize("weighting", [*ALL, Random(), *KEEPING, *WITH_LOSSES, *COORDINATEWISE], ids=repr)
def test_repr_makes_it_again(weighting):
    import gramjd.aggregation

    assert repr(eval(repr(weighting), vars(gramjd.aggregation))) == repr(weighting)


def test_who_takes_losses_and_who_takes_gradients():
    takers = [w for w in (*ALL, *KEEPING, *WITH_LOSSES) if w.takes_losses]
    assert {type(w) for w in takers} == {CRMOGM, GaussNewton, Nested, Sven}
    for aggregator in COORDINATEWISE:
        assert not getattr(aggregator, "takes_losses", False)


@pytest.mark.parametrize("weighting", [GaussNewton(), Sven(), Sven(0.1, 2)], ids=repr)
@pytest.mark.parametrize("kind", ["wide", "full", "zero rows", "zero", "duplicates"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_with_losses_scale_and_order_turn_into_scale_and_order(weighting, kind, scale):
    """A root is reached by steps that shrink as gradients grow: `w` goes like one over their squared length."""
    J, L = jacobian(kind, 7, seed=3), torch.arange(1.0, 8.0, dtype=torch.float64)
    w = weighting(J @ J.mT, L)
    torch.testing.assert_close(weighting(J @ J.mT * scale**2, L) * scale**2, w, rtol=1e-7, atol=1e-12)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    update = weighting.aggregate(J, L)
    room = 1e-7 * float(update.norm())
    torch.testing.assert_close(weighting.aggregate(J[order], L[order]), update, rtol=1e-6, atol=room)


def test_options_keep_all_digits_of_the_numbers_given():
    assert UPGrad([0.1, 0.3])(torch.eye(2, dtype=torch.float64)).tolist() == [0.1, 0.3]


@pytest.mark.parametrize("weighting", [DualProj(), MGDA(), UPGrad(), CAGrad(0.0)], ids=repr)
def test_equal_orthogonal_gradients_are_averaged(weighting):
    torch.testing.assert_close(weighting(torch.eye(5)), Mean()(torch.eye(5)))


@pytest.mark.parametrize(
    "name",
    [
        "_batches",
        "alignedmtl",
        "cagrad",
        "config",
        "crmogm",
        "dualproj",
        "excessmtl",
        "fairgrad",
        "gaussnewton",
        "graddrop",
        "imtlg",
        "krum",
        "mgda",
        "modo",
        "nashmtl",
        "nested",
        "pcd",
        "pcgrad",
        "random",
        "sdmgrad",
        "solvers.least_distance",
        "solvers.projection",
        "solvers.rounding",
        "solvers.simplex",
        "solvers.spectral",
        "sven",
        "trimmedmean",
    ],
)
def test_examples_in_docstrings(name):
    importlib.import_module(f"gramjd.aggregation.{name}")
    result = doctest.testmod(sys.modules[f"gramjd.aggregation.{name}"])
    assert result.attempted
    assert not result.failed
