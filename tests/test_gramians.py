"""Shares of parameters, rectangles between two loss vectors, norms of rows, and J column by column."""

import importlib

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd.aggregation import Coordinatewise
from gramjd.errors import BudgetError, DenseRowsWarning, GramjdError, InputError
from tests.oracle import leaves, oracle_gramian, oracle_jacobian
from tests.zoo import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
CHOSEN = [
    pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name)
    for n, case in enumerate(CASES.values())
    if (n % 6 == 1 or "tied" in case.name) and torch.float64 in case.dtypes
]


def made(case: Case) -> tuple[Tensor, list[Tensor], Tensor]:
    losses, inputs = case.make(torch.float64)
    targets = list(inputs) if inputs is not None else leaves(losses)
    try:
        gramjd.gramian(losses, targets)
    except GramjdError:
        if case.may_refuse:
            pytest.skip("refused, as it may be")
        raise
    return losses, targets, oracle_gramian(losses, targets).double()


def assert_close(found: Tensor, expected: Tensor, case: Case | None = None) -> None:
    gap = float((found.double() - expected).norm())
    assert gap <= ((case and case.tol) or 1e-11) * max(float(expected.norm()), 1e-300)


@pytest.mark.parametrize("case", CHOSEN)
def test_parts_of_the_gramian_agree_with_the_oracle(case: Case) -> None:
    losses, targets, expected = made(case)
    assert_close(gramjd.gradient_norms(losses, targets) ** 2, expected.diagonal(), case)
    assert_close(sum(gramjd.gramian(losses, targets, per_parameter=True).values()), expected, case)
    assert_close(gramjd.gramian(losses, targets, other=losses), expected, case)


class Weighted(Coordinatewise):
    """A coordinatewise view of a weighted sum, whose result is known."""

    def __init__(self, w: Tensor) -> None:
        self.w = w
        self.parts: list[int] = []

    def _combine(self, columns: Tensor) -> Tensor:
        self.parts.append(columns.numel())
        return self.w.to(columns.dtype) @ columns


@pytest.mark.parametrize("case", [p for p in CHOSEN if "hook" not in p.id])
def test_columns_agree_with_a_weighted_backward(case: Case) -> None:
    losses, targets, expected = made(case)
    if not all(t.is_leaf for t in targets):
        pytest.skip("fills leaves only")
    w = torch.randn(len(expected), dtype=torch.float64)
    assert gramjd.gram_backward(losses, Weighted(w), inputs=targets, retain_graph=True) is None
    found = [t.grad for t in targets]
    for t in targets:
        t.grad = None
    gramjd.gram_backward(losses, lambda G: w.to(G.dtype), inputs=targets)
    size = sum(float(t.grad.to_dense().abs().square().sum()) for t in targets if t.grad is not None) ** 0.5
    for t, g in zip(targets, found, strict=True):
        if t.grad is None:
            assert g is None or not g.any()
        else:
            loose = case.tol or (1e-6 if case.name.startswith("hf") else 1e-11)
            assert float((t.grad.to_dense() - g).abs().max()) <= loose * size


def test_columns_come_in_parts() -> None:
    layer = nn.Linear(2048, 1024)
    aggregator = Weighted(torch.ones(8))
    gramjd.gram_backward(layer(torch.randn(8, 2048)).square().sum(1), aggregator)
    assert len(aggregator.parts) > 8
    assert max(aggregator.parts) <= 1 << 20


def test_columns_of_repeated_owners_add_up_before_they_are_combined() -> None:
    class Median(Coordinatewise):
        def _combine(self, columns: Tensor) -> Tensor:
            return columns.median(0).values

    torch.manual_seed(3)
    cell, x = nn.Linear(4, 4), torch.randn(5, 4)
    losses = cell(torch.tanh(cell(torch.tanh(cell(x))))).square().sum(1)
    J = oracle_jacobian(losses, [cell.weight, cell.bias])
    gramjd.gram_backward(losses, Median())
    for rows, p in zip(J, cell.parameters(), strict=True):
        torch.testing.assert_close(p.grad, rows.median(0).values.float(), rtol=1e-4, atol=1e-6)


def test_a_combination_of_the_wrong_shape_changes_nothing() -> None:
    class Wrong(Coordinatewise):
        def _combine(self, columns: Tensor) -> Tensor:
            return columns

    layer = nn.Linear(3, 2)
    with pytest.raises(gramjd.errors.AggregatorError, match="one number each"):
        gramjd.gram_backward(layer(torch.ones(4, 3)).sum(1), Wrong())
    assert layer.weight.grad is None


def two_batches() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Tanh(), nn.Linear(12, 4), nn.LayerNorm(4))
        losses = [model(torch.randn(n, 2, 4, 4)).square().sum(1) for n in (5, 3)]
    finally:
        torch.set_default_dtype(torch.float32)
    return model, losses[0], losses[1]


def test_rectangle_between_two_batches() -> None:
    model, a, b = two_batches()
    whole = oracle_gramian([a, b], list(model.parameters()))
    assert_close(gramjd.gramian(a, other=b), whole[:5, 5:])
    assert_close(gramjd.gramian(b, other=a), whole[5:, :5])


def test_rectangle_of_an_embedding_and_a_tied_head() -> None:
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(9, 4, dtype=torch.float64))
    ids = torch.randint(9, (4, 3))
    embedded = nn.functional.embedding(ids, table).square().sum((1, 2))
    head = (torch.randn(2, 3, 4, dtype=torch.float64) @ table.T).square().sum((1, 2))
    whole = oracle_gramian([embedded, head], [table])
    assert_close(gramjd.gramian(embedded, other=head), whole[:4, 4:])
    assert_close(gramjd.gramian(head, other=embedded), whole[4:, :4])


def test_rectangle_of_uses_in_both_orientations_and_in_parts() -> None:
    torch.manual_seed(0)
    W = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))
    x = torch.randn(3, 4, dtype=torch.float64)
    sides = [(x @ W).square().sum(1), (x @ W.T).tanh().sum(1), (x[:, :2] @ W[:2]).sin().sum(1), W[2:].square().sum(1)]
    for a in sides:
        for b in sides:
            m = len(a)
            assert_close(gramjd.gramian(a, other=b), oracle_gramian([a, b], [W])[:m, m:])


def test_an_input_of_one_side_counts_as_zero() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    c = torch.ones(2, requires_grad=True)
    assert not gramjd.gramian(a * 2, [a, b], other=b * 3).any()
    with pytest.raises(InputError, match="neither by `losses` nor by `other`"):
        gramjd.gramian(a * 2, [a, c], other=b * 3)


def test_shares_by_name_or_by_tensor() -> None:
    model, losses, _ = two_batches()
    named = gramjd.gramian(losses, dict(model.named_parameters()), per_parameter=True)
    assert list(named) == [name for name, _ in model.named_parameters()]
    by_tensor = gramjd.gramian(losses, per_parameter=True)
    for name, p in model.named_parameters():
        torch.testing.assert_close(by_tensor[p], named[name])
        assert_close(named[name], oracle_gramian(losses, [p]))


def test_shares_and_norms_in_blocks() -> None:
    norm = nn.BatchNorm1d(6).double()
    layer = nn.Linear(5, 6).double()
    losses = norm(layer(torch.randn(12, 5, dtype=torch.float64))).square().sum(1)
    targets = [*layer.parameters(), *norm.parameters()]
    J = oracle_gramian(losses, targets)
    budget = 3000
    with pytest.raises(BudgetError):
        gramjd.gramian(losses, memory_budget=300)
    assert_close(gramjd.gradient_norms(losses, memory_budget=budget) ** 2, J.diagonal())
    assert_close(sum(gramjd.gramian(losses, per_parameter=True, memory_budget=budget).values()), J)
    with pytest.raises(BudgetError, match="ask for fewer losses"):
        gramjd.gramian(losses, other=losses, memory_budget=budget)


def test_norms_form_no_products_of_different_rows() -> None:
    """The norms of m = 512 rows of a wide layer take memory like m, not like m squared."""
    layer = nn.Linear(8, 8).double()
    losses = layer(torch.randn(512, 8, dtype=torch.float64)).square().sum(1)
    sizes: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in [out] if isinstance(t, Tensor))
            return out

    with Largest():
        norms = gramjd.gradient_norms(losses)
    assert max(sizes) < 512 * 512
    assert_close(norms**2, oracle_gramian(losses, list(layer.parameters())).diagonal())


def test_other_and_per_parameter_exclude_each_other() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="not both"):
        gramjd.gramian(w * 2, other=w * 3, per_parameter=True)


@pytest.mark.parametrize("beside_dynamo", [False, True])
def test_notices_name_the_caller(beside_dynamo: bool) -> None:
    if beside_dynamo:
        importlib.import_module("torch._dynamo")
    norm = nn.BatchNorm1d(3)
    losses = norm(torch.randn(4, 3)).square().sum(1)
    for ask in (
        lambda: gramjd.gramian(losses),
        lambda: gramjd.gramian(losses, other=losses),
        lambda: gramjd.gramian(losses, per_parameter=True),
        lambda: gramjd.gradient_norms(losses),
    ):
        with pytest.warns(DenseRowsWarning) as caught:
            ask()
        assert all(w.filename == __file__ for w in caught)


def test_rectangle_of_a_table_with_positions_in_front() -> None:
    """The ids of a loss do not lie side by side in memory."""
    table = nn.Embedding(7, 3).double()
    ids = torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0))
    losses = table(ids).sin().sum((0, 2))
    assert_close(gramjd.gramian(losses, other=losses), oracle_gramian(losses))
