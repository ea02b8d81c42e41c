"""The promise, over the zoo: a Gramian is exact, or it is an error that names the operation."""

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd.engine.rules import vocabulary
from gramjd.errors import BudgetError, GramjdError
from gramjd.kernels import cost, gathered, outer, symmetric
from tests.kernels.onednn import needs_onednn, onednn_for_everything
from tests.oracle import (
    assert_close_gramian,
    assert_gramian,
    flatten,
    leaves,
    oracle_gramian,
    oracle_jacobian,
    relative_error,
    tolerance,
)
from tests.zoo import CASES, Case
from tests.zoo.registry import Losses, single_thread

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
F64, F32 = torch.float64, torch.float32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The models are too small to share: more threads only wait for each other."""
    with single_thread():
        yield


def some(every: int = 1, layout: str | None = "any", slow: bool = True) -> list:
    """Parameters for a test: every n-th case, of one layout or of any, that must not refuse."""
    chosen = [c for c in CASES.values() if layout in ("any", c.layout) and (slow or not c.slow)]
    return [pytest.param(c, marks=[pytest.mark.slow] * c.slow, id=c.name) for c in chosen[::every]]


PAIRS = [
    pytest.param(case, dtype, marks=[pytest.mark.slow] * case.slow, id=f"{case.name}-{str(dtype)[6:]}")
    for case in CASES.values()
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("case", "dtype"), PAIRS)
def test_gramian_is_exact(case: Case, dtype: torch.dtype) -> None:
    try:
        losses, _ = assert_gramian(case, dtype)
    except GramjdError:
        if not case.may_refuse:
            raise
        return
    reached = leaves(losses)
    assert all(leaf.grad is None for leaf in reached)
    sum(loss.double() for loss in flatten(losses)).backward()
    assert any(leaf.grad is not None for leaf in reached)


@pytest.mark.parametrize(("case", "dtype"), [p for p in PAIRS if p.values[0].layout == "sample"])
def test_batch_axis_survives(case: Case, dtype: torch.dtype) -> None:
    losses, inputs = case.make(dtype)
    assert [(entry.operation, entry.reason) for entry in gramjd.explain(losses, inputs=inputs).dense] == []


@pytest.mark.parametrize("case", some(layout="dense"))
def test_mixing_is_reported(case: Case) -> None:
    losses, inputs = case.make(case.dtypes[0])
    dense = gramjd.explain(losses, inputs=inputs).dense
    assert len(dense) >= 1
    assert all(entry.operation and entry.reason for entry in dense)


@pytest.mark.parametrize("case", some(every=5, slow=False))
def test_second_call_and_half_of_the_inputs(case: Case) -> None:
    if case.may_refuse:
        pytest.skip("may refuse")
    dtype = case.dtypes[0]
    losses, inputs = case.make(dtype)
    half = list(inputs or leaves(losses))[::2]
    first, second = gramjd.gramian(losses, inputs=half), gramjd.gramian(losses, inputs=half)
    assert_close_gramian(first, oracle_gramian(losses, half), tolerance(case, dtype), case.name)
    assert relative_error(second, first) <= 1e-15


@pytest.mark.parametrize("case", [*some(every=3, slow=False), *some(every=4, layout="dense", slow=False)])
def test_only_upper_halves_count(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many losses: products in blocks, of which those below the diagonal are never computed."""
    original = symmetric.add_gram

    def spoilt(G: Tensor, J: Tensor) -> None:
        original(G, J)
        G.masked_fill_(torch.ones_like(G, dtype=torch.bool).tril(-1), torch.nan)

    monkeypatch.setattr(symmetric, "block_size", lambda R: min(R, 2))
    for module in (symmetric, outer, gathered):
        monkeypatch.setattr(module, "add_gram", spoilt)
    with suppress(GramjdError) if case.may_refuse else nullcontext():
        losses, inputs = assert_gramian(case, case.dtypes[0])
        lengths, expected = gramjd.gradient_norms(losses, inputs), oracle_gramian(losses, inputs)
        squares = torch.diag(lengths.to(expected.dtype).square())
        assert_close_gramian(squares, torch.diag(expected.diagonal()), tolerance(case, case.dtypes[0]), case.name)


@pytest.mark.parametrize("case", [*some(every=3, slow=False), *some(every=4, layout="dense", slow=False)])
def test_next_to_no_room_for_temporaries(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with large layers: chunks of parts of a row, and cotangents written over where they may be."""
    for name in ("CHUNK", "LEAST_CHUNK"):
        monkeypatch.setattr(cost, name, 8)
    monkeypatch.setattr(vocabulary, "IN_CACHE", 30)
    with suppress(GramjdError) if case.may_refuse else nullcontext():
        for _ in range(3):
            losses, inputs = assert_gramian(case, case.dtypes[0])
        if not case.may_refuse:
            parts = gramjd.gramian(losses, inputs, per_parameter=True)
            whole = oracle_gramian(losses, inputs)
            assert_close_gramian(sum(parts.values()), whole, tolerance(case, case.dtypes[0]), case.name)


@needs_onednn
@pytest.mark.parametrize("case", [p for p in some(every=3, slow=False) if F32 in p.values[0].dtypes])
def test_products_by_onednn(case: Case) -> None:
    """Planned, and twice from the plan, with every product of float32 matrices made by oneDNN."""
    with onednn_for_everything(), suppress(GramjdError) if case.may_refuse else nullcontext():
        for _ in range(3):
            assert_gramian(case, F32)


@pytest.mark.parametrize("case", some(every=7, slow=False))
def test_mean_is_plain_training(case: Case) -> None:
    if case.may_refuse:
        pytest.skip("may refuse")
    dtype = case.dtypes[0]
    losses, inputs = case.make(dtype)
    targets = list(inputs or leaves(losses))
    expected = [jacobian.mean(0) for jacobian in oracle_jacobian(losses, targets)]
    gramjd.gram_backward(losses, gramjd.Mean(), inputs=inputs)
    for target, mean in zip(targets, expected, strict=True):
        grad = torch.zeros_like(target) if target.grad is None else target.grad
        torch.testing.assert_close(_wide(grad), mean, rtol=1e-5, atol=max(1e-6, case.tol or 0.0))


def _wide(grad: Tensor) -> Tensor:
    return grad.to_dense().to(torch.complex128 if grad.is_complex() else F64)


@pytest.mark.parametrize(
    "case", [*some(layout="dense"), *some(every=8, layout=None, slow=False), *some(every=20, layout="sample")]
)
def test_blocks_give_the_same_gramian(case: Case) -> None:
    """A memory budget too small for all rows: the Gramian is put together from blocks."""
    if case.may_refuse:
        pytest.skip("may refuse")
    losses, inputs = case.make(case.dtypes[0])
    expected = oracle_gramian(losses, inputs)
    for budget in (16384, 4096, 1024, 600, 300):
        got, enough = _at_least(losses, inputs, budget)
        assert_close_gramian(got, expected, tolerance(case, case.dtypes[0]), f"{case.name} in {enough} bytes")
        if enough > budget:
            break


def _at_least(losses: Losses, inputs: Sequence[Tensor] | None, budget: int) -> tuple[Tensor, int]:
    """The Gramian in this budget, or in the first of its doubles that is enough, and which one that is."""
    for enough in [budget << k for k in range(12)]:
        with suppress(BudgetError):
            return gramjd.gramian(losses, inputs=inputs, memory_budget=enough), enough
    raise AssertionError(f"{enough} bytes are not enough")


@pytest.mark.parametrize(
    "name",
    [
        "attention-wrong-batch-first",
        "vision-residual-batch-norm",
        "edit-assign-stacked",
        "shape-sample-tasks-list",
        "route-top-one-put",
    ],
)
def test_a_refused_budget_names_a_larger_one(name: str) -> None:
    losses, inputs = CASES[name].make(F64)
    with pytest.raises(BudgetError) as caught:
        gramjd.gramian(losses, inputs=inputs, memory_budget=200)
    found = re.search(r"raise it to at least (\d+) bytes", str(caught.value))
    assert found is not None
    assert int(found[1]) > 200


@pytest.mark.parametrize("name", ["mlp-two-layers", "conv-2d", "table-tied", "norm-batch-train", "pde-poisson-1d"])
def test_graphs_may_be_interleaved(name: str) -> None:
    """Building and using another graph on the same parameters leaves the first one alone."""
    losses, inputs = CASES[name].make(F64)
    expected = oracle_gramian(losses, inputs)
    parameters = list(inputs or leaves(losses))
    others = torch.stack([p.square().sum() for p in parameters])
    assert_close_gramian(gramjd.gramian(others), oracle_gramian(others), 1e-12, "the other graph")
    both = [*([losses] if isinstance(losses, Tensor) else losses), others]
    assert_close_gramian(gramjd.gramian(both, parameters), oracle_gramian(both, parameters), 1e-12, "both graphs")
    others.sum().backward()
    assert_close_gramian(gramjd.gramian(losses, inputs), expected, 1e-12, name)


@pytest.mark.parametrize("name", ["mlp-five-layers", "attention-encoder", "conv-2d", "mixing-info-nce", "gru-outputs"])
def test_single_precision_accumulates_in_double_on_request(name: str) -> None:
    losses, inputs = CASES[name].make(F32)
    got = gramjd.gramian(losses, inputs=inputs, dtype=F64)
    assert got.dtype == F64
    assert_close_gramian(got, oracle_gramian(losses, inputs), 2e-6, name)


def test_what_autograd_refuses_is_refused() -> None:
    """A weight changed after the forward pass, and a graph that is gone, raise here as they do there."""
    for spoil in (_step, _free):
        model, losses = _small()
        spoil(model, losses)
        with pytest.raises(RuntimeError):
            gramjd.gramian(losses)


def _small() -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    return model, model(torch.randn(5, 3, dtype=F64)).square().sum(1)


def _step(model: torch.nn.Module, losses: Tensor) -> None:
    with torch.no_grad():
        model[2].weight.mul_(2.0)  # type: ignore[index]


def _free(model: torch.nn.Module, losses: Tensor) -> None:
    losses.sum().backward()


def test_reentrant_checkpoints_are_refused() -> None:
    """They hide parameters from the graph: without an error those would be missing in silence."""
    model, _ = _small()
    x = torch.randn(5, 3, dtype=F64, requires_grad=True)
    hidden = checkpoint(model, x, use_reentrant=True)
    with pytest.raises(GramjdError, match=r"(?i)checkpoint"):
        gramjd.gramian(hidden.square().sum(1))


@pytest.mark.parametrize(
    "name", ["mlp-two-layers", "act-dropout-0.3", "checkpoint-dropout", "custom-linear", "mixing-info-nce"]
)
def test_nothing_else_changes(name: str) -> None:
    """Random state, grad mode, and hooks that wait for a finished gradient stay as they are."""
    losses, inputs = CASES[name].make(F64)
    fired: list[Tensor] = []
    for leaf in leaves(losses):
        leaf.register_post_accumulate_grad_hook(fired.append)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = gramjd.gramian(losses, inputs=inputs)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert not fired
    assert not first.requires_grad
    assert_close_gramian(first, oracle_gramian(losses, inputs), 1e-12, name)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", ["mlp-two-layers", "table-small-gpt", "pde-heat", "mixing-centred"])
def test_anomaly_mode(name: str) -> None:
    with torch.autograd.detect_anomaly(check_nan=True):
        losses, inputs = CASES[name].make(F64)
        assert_close_gramian(gramjd.gramian(losses, inputs=inputs), oracle_gramian(losses, inputs), 1e-12, name)
