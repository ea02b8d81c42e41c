"""Factors of which a loss owns many rows, as factors with one row per loss: the same Jacobian, and no more rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gramjd
from gramjd.engine import parameter, segments
from gramjd.engine.consumers.gramian import Diagonal, Gramian
from gramjd.engine.cotangent import add_rows
from gramjd.engine.factor import Convolution, Factor, Gathered, Outer
from gramjd.engine.layout import Owners
from gramjd.engine.parameter import Jacobian
from gramjd.engine.segments import by_group, by_loss, of_groups, repeated, rows_by_loss
from tests.oracle import assert_close_gramian, leaves, oracle_gramian, oracle_jacobian, relative_error
from tests.zoo import CASES

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
M = 5
sizes = st.integers(1, 4)
RAGGED = [
    pytest.param(case, id=case.name)
    for name, case in CASES.items()
    if name.startswith(("ragged-", "route-top", "graph-")) and torch.float64 in case.dtypes and not case.slow
]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outer(K: int, b: int, T: int, owners: Owners, seed: int, flipped: bool = False, g: int = 1) -> Outer:
    i, o = 3, 2
    shape = (i, o) if flipped else (o, i)
    x, c = random(g, b, T, i, seed=seed), random(K, g, b, T, o, seed=seed + 1)
    return Outer(owners, (g, *shape) if g > 1 else shape, "", x, c, flipped)


def gathered(K: int, b: int, T: int, owners: Owners, seed: int) -> Gathered:
    ids = torch.randint(0, 4, (b, T), generator=torch.Generator().manual_seed(seed))
    return Gathered(owners, (4, 3), "", ids, random(K, b, T, 3, seed=seed + 1))


def convolution(K: int, b: int, T: int, owners: Owners, seed: int) -> Convolution:
    options = {"stride": [1], "padding": [0], "dilation": [1], "groups": 1}
    x, c = random(b, 2, T + 1, seed=seed), random(K, b, 3, T, seed=seed + 1)
    return Convolution(owners, (3, 2, 2), "", x, c, options)


MAKE: dict[str, Callable[..., Factor]] = {
    "outer": outer,
    "flipped": lambda *args: outer(*args, flipped=True),
    "in groups": lambda *args: outer(*args, g=2),
    "table": gathered,
    "convolution": convolution,
}


@st.composite
def owners_of(draw: st.DrawFn, K: int, b: int) -> Owners:
    """Whose each of K b slices is: anybody's, one loss's, nobody's here and there, or the same pattern in each row."""
    kind = draw(st.sampled_from(["any", "one", "gaps", "alike", "distinct"]))
    random = np.random.default_rng(draw(st.integers(0, 2**20)))
    if kind == "one":
        return np.full(K * b, draw(st.integers(0, M - 1)))
    if kind == "alike":
        return (np.arange(K)[:, None] * 2 + random.integers(0, 2, b)).reshape(-1)
    if kind == "distinct":
        return random.permutation(K * b)
    found = random.integers(0, M, K * b)
    return np.where(random.random(K * b) < 0.4, -1, found) if kind == "gaps" else found


def written_out(factors: Sequence[Factor], m: int) -> Tensor:
    """J [m, numbers of the operand], the rows of each loss added up."""
    J = torch.zeros(m, int(np.prod(factors[0].shape)), dtype=torch.float64)
    for factor in factors:
        add_rows(J, factor.owners, factor.materialise().reshape(len(factor.owners), -1))
    return J


def few(monkeypatch: pytest.MonkeyPatch, padded: float) -> None:
    """No padding for its own sake: losses with other numbers of slices are factors of their own."""
    monkeypatch.setattr(segments, "LEAST", 0)
    monkeypatch.setattr(segments, "PADDED", padded)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("apart", [False, True])
@given(st.data(), st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**20))
def test_rows_by_loss(kind: str, apart: bool, data: st.DataObject, K: int, b: int, T: int, seed: int) -> None:
    owners = data.draw(owners_of(K, b))
    factor, m = MAKE[kind](K, b, T, owners, seed), max(M, K * b, 2 * K)
    with pytest.MonkeyPatch.context() as patch:
        if apart:
            few(patch, 0)
        found = by_loss([factor])
        alone = [int(i) for f in found for i in f.owners if i >= 0]
        if not repeated(owners) or not alone:
            assert found == [factor]
        assert len(set(alone)) == len(alone)
        assert len(alone) == len(set(owners[owners >= 0]))
        torch.testing.assert_close(written_out(found, m), written_out([factor], m), rtol=1e-12, atol=1e-12)
        if alone:
            kept = np.array(sorted(set(alone)), dtype=np.int64)[::-1].copy()
            rows = rows_by_loss(factor, kept).reshape(len(kept), -1)
            expected = written_out([factor], m)[torch.from_numpy(kept)]
            torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["outer", "table"])
@given(st.data(), st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=2, max_size=3))
def test_uses_of_one_parameter_are_one(kind: str, data: st.DataObject, uses: list[tuple[int, int]]) -> None:
    """Whatever their positions are."""
    factors = [MAKE[kind](1, b, T, data.draw(owners_of(1, b)), n) for n, (b, T) in enumerate(uses)]
    m = max(M, *(b for b, _ in uses), 2)
    found = by_loss(factors)
    owned = {int(i) for f in factors for i in f.owners if i >= 0}
    assert sum(len(f.owners) for f in found) >= len(owned)
    if owned and repeated(np.concatenate([f.owners for f in factors])):
        assert sorted(int(i) for f in found for i in f.owners) == sorted(owned)
    if found:
        torch.testing.assert_close(written_out(found, m), written_out(factors, m), rtol=1e-12, atol=1e-12)


@given(st.data(), st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**20))
def test_slices_by_group(data: st.DataObject, K: int, P: int, g: int, seed: int) -> None:
    owners = data.draw(owners_of(K, P)).reshape(K, P)
    group = np.sort(np.random.default_rng(seed).integers(0, g, P))
    x, c = random(P, 3, seed=seed), random(K, P, 2, seed=seed + 1)
    expected = torch.zeros(max(M, K * P, 2 * K), g, 2, 3, dtype=torch.float64)
    for k in range(K):
        for n in range(P):
            if owners[k, n] >= 0:
                expected[owners[k, n], group[n]] += torch.outer(c[k, n], x[n])
    groups = by_group(owners, group, g)
    assert groups.slices == int((owners >= 0).sum())
    if not groups.slices:
        return
    X, C = of_groups(groups, x, c)
    got = torch.einsum("gbto,gbti->bgoi", C[0], X)
    torch.testing.assert_close(got, expected[torch.from_numpy(groups.owners)], rtol=1e-12, atol=1e-12)
    others = [i for i in range(len(expected)) if i not in groups.owners]
    assert not expected[others].any()


def test_one_loss_with_nearly_everything_is_a_factor_of_its_own() -> None:
    """Padding the others to its length would take a thousand times what they need."""
    few_, many = 1000, 1000
    owners = np.concatenate([np.arange(1, few_ + 1), np.zeros(many, dtype=np.int64)])
    shape = (len(owners), 1, 64)
    factor = Outer(owners, (64, 64), "", torch.randn(1, *shape), torch.randn(1, 1, *shape))
    found = by_loss([factor])
    assert sorted(tuple(f.c.shape[2:4]) for f in found if isinstance(f, Outer)) == [(1, many), (few_, 1)]


@pytest.mark.parametrize("most", [2, 7, 40])
def test_padding_stays_within_its_bound(most: int) -> None:
    counts = np.random.default_rng(most).integers(0, most + 1, 50)
    owners = np.repeat(np.arange(50), counts)
    work = 1 << 18
    factor = Outer(owners, (512, 512), "", torch.zeros(1, len(owners), 1, 512), torch.zeros(1, 1, len(owners), 1, 512))
    padded = sum(f.c.shape[2] * f.c.shape[3] for f in by_loss([factor]) if isinstance(f, Outer))
    groups = len(by_loss([factor]))
    assert (
        padded - len(owners) <= segments.PADDED / (1 - segments.PADDED) * len(owners) + groups * segments.LEAST / work
    )


def test_slices_in_order_are_not_copied() -> None:
    """Tokens of equally long runs lie as they are needed."""
    x, c = torch.randn(1, 6, 1, 3), torch.randn(1, 1, 6, 1, 2)
    (found,) = by_loss([Outer(np.array([0, 0, 1, 1, 2, 2]), (2, 3), "", x, c)])
    assert isinstance(found, Outer)
    assert found.x.shape == (1, 3, 2, 3)
    assert found.x.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert found.c.untyped_storage().data_ptr() == c.untyped_storage().data_ptr()


def test_what_is_not_finite_stays_with_its_loss() -> None:
    """Also where another loss has fewer slices, or none in a group."""
    x, c = torch.ones(1, 5, 1, 2), torch.ones(1, 1, 5, 1, 2)
    x[0, 0], c[0, 0, 1] = torch.nan, torch.inf
    for found in (by_loss([Outer(np.array([1, 1, 0, 2, 2]), (2, 2), "", x, c)]),):
        rows = written_out_float(found, 3)
        assert rows[0].isfinite().all()
        assert rows[2].isfinite().all()
        assert not rows[1].isfinite().any()
    groups = by_group(np.array([[1, 1, 0, 2, 2]]), np.array([0, 0, 0, 1, 1]), 2)
    X, C = of_groups(groups, x[0, :, 0], c[0, :, :, 0])
    J = torch.einsum("gbto,gbti->bgoi", C[0], X)
    assert J[0].isfinite().all()
    assert J[2].isfinite().all()
    assert J[1, 1].isfinite().all()


def written_out_float(factors: Sequence[Factor], m: int) -> Tensor:
    J = torch.zeros(m, factors[0].shape[0] * factors[0].shape[1])
    for factor in factors:
        add_rows(J, factor.owners, factor.materialise().reshape(len(factor.owners), -1))
    return J


# -- through whole models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["rows", "pairs", "few"])
@pytest.mark.parametrize("case", RAGGED[::2])
def test_either_way_to_the_same_gramian(case, route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses with other numbers of slices in factors of their own, whose products are taken in either way."""
    few(monkeypatch, 0.3 if route == "few" else 0)
    if route != "few":
        monkeypatch.setattr(parameter.ragged, "route", lambda extents, known: route)
    losses, inputs = case.make(torch.float64)
    expected, limit = oracle_gramian(losses, inputs), max(case.tol or 0, 1e-11)
    assert_close_gramian(gramjd.gramian(losses, inputs), expected, limit, case.name)
    norms = gramjd.gradient_norms(losses, inputs).to(expected.dtype).square()
    assert_close_gramian(torch.diag(norms), torch.diag(expected.diagonal()), limit, case.name)


@pytest.mark.parametrize("case", RAGGED[1::2])
def test_other_uses_of_a_jacobian(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares, the rectangle with other losses, columns, and both updates."""
    few(monkeypatch, 0)
    losses, inputs = case.make(torch.float64)
    limit = max(case.tol or 0, 1e-11)
    expected = oracle_gramian(losses, inputs)
    shares = gramjd.gramian(losses, inputs, per_parameter=True)
    assert_close_gramian(sum(shares.values()), expected, limit, case.name)
    assert_close_gramian(gramjd.gramian(losses, inputs, other=losses), expected, limit, case.name)


def test_totals_of_a_part_with_a_loss_in_two_factors() -> None:
    """Stacked rows that cannot be one factor with others: their products of one loss with itself count twice."""
    one, two = outer(2, 3, 2, np.array([0, 1, 2, 3, 4, 0]), 1), outer(1, 3, 2, np.array([4, 2, 0]), 5)
    J = written_out([one, two], M)
    for kind, expected in ((Gramian, J @ J.T), (Diagonal, J.square().sum(1))):
        total = kind(M, torch.device("cpu"), torch.float64)
        total.add_share(Jacobian((2, 3), [one, two]))
        assert relative_error(total.finished(), expected) < 1e-13


@pytest.mark.parametrize("update", ["backward", "reuse"])
@pytest.mark.parametrize("name", ["ragged-experts-layers", "ragged-tied", "ragged-frames", "ragged-shared-layer"])
def test_updates(name: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, 0)
    losses, _ = CASES[name].make(torch.float64)
    reached = leaves(losses)
    w = torch.linspace(-1, 1, losses.numel(), dtype=torch.float64)
    expected = [torch.tensordot(w, J, 1) for J in oracle_jacobian(losses, reached)]
    gramjd.gram_backward(losses, lambda G: w, update=update)
    for leaf, mine in zip(reached, expected, strict=True):
        torch.testing.assert_close(leaf.grad, mine, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["ragged-experts-layers", "ragged-tied", "ragged-frames", "ragged-shared-table"])
def test_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An aggregator that looks at coordinates gets the rows of losses, not those of tokens."""
    few(monkeypatch, 0)
    losses, _ = CASES[name].make(torch.float64)
    reached, aggregator = leaves(losses), gramjd.aggregation.TrimmedMean(1)
    expected = [aggregator.aggregate(J.flatten(1)).view(J.shape[1:]) for J in oracle_jacobian(losses, reached)]
    gramjd.gram_backward(losses, aggregator)
    for leaf, mine in zip(reached, expected, strict=True):
        torch.testing.assert_close(leaf.grad, mine, rtol=1e-9, atol=1e-12)


# -- grouped products -------------------------------------------------------------------------------------------------

GROUPED = [
    case for name, case in CASES.items() if name.startswith("experts-") and not name.startswith("experts-batches")
]


@pytest.mark.parametrize("case", GROUPED, ids=lambda case: case.name)
def test_groups_that_would_be_mostly_padding_are_factors_of_their_own(case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments.Groups, "wasteful", lambda groups, work: True)
    losses, inputs = case.make(torch.float32)
    assert_close_gramian(gramjd.gramian(losses, inputs), oracle_gramian(losses, inputs), case.tol, case.name)


@pytest.mark.parametrize("case", GROUPED, ids=lambda case: case.name)
def test_releases_without_a_grouped_product(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the input receives is then a product per group."""
    losses, inputs = case.make(torch.float32)
    expected = oracle_gramian(losses, inputs)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm")
    assert_close_gramian(gramjd.gramian(losses, inputs), expected, case.tol, case.name)


def test_when_groups_are_mostly_padding() -> None:
    """A hundred slices of one loss in one of fifty groups, and one of another loss in each."""
    owners, group = np.array([[0] * 100 + [1] * 50]), np.array([0] * 100 + list(range(50)))
    groups = by_group(owners, group, 50)
    assert groups.places.shape == (50, 2, 100)
    assert groups.wasteful(work=1 << 20)
    assert not groups.wasteful(work=1)
    even = by_group(np.array([[0, 1] * 50]), np.repeat(np.arange(25), 4), 25)
    assert even.places.size == even.slices
    assert not even.wasteful(work=1 << 40)
