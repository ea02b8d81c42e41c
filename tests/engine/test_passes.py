"""Rows by plain passes: the same Gramian and update as a walk's, wherever passes can be gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd.engine import compute, passes
from gramjd.engine.choice import only
from gramjd.errors import GramjdError
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
from tests.small import F64, mlp
from tests.strategies_graphs import Program, programs
from tests.zoo import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
EVERY = [pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name) for case in CASES.values()]


@pytest.fixture(autouse=True)
def _by_passes(_walks: None) -> Iterator[None]:
    with only("passes"):
        yield


@pytest.mark.parametrize("case", EVERY[::2])
def test_gramian_is_exact(case: Case) -> None:
    try:
        assert_gramian(case, case.dtypes[-1])
    except GramjdError:
        if not case.may_refuse:
            raise


@pytest.mark.parametrize("case", EVERY[1::6])
def test_norms_are_exact(case: Case) -> None:
    if case.may_refuse:
        pytest.skip("may refuse")
    losses, inputs = case.make(case.dtypes[0])
    expected = oracle_gramian(losses, inputs).diagonal()
    squares = gramjd.gradient_norms(losses, inputs).to(expected.dtype).square()
    assert_close_gramian(torch.diag(squares), torch.diag(expected), tolerance(case, case.dtypes[0]), case.name)


@pytest.mark.parametrize("case", EVERY[3::6])
def test_reuse_is_exact(case: Case) -> None:
    """The update made of the rows, for weights of any sign."""
    if case.may_refuse:
        pytest.skip("may refuse")
    losses, inputs = case.make(case.dtypes[0])
    targets = list(inputs or leaves(losses))
    w = torch.linspace(-1, 2, len(flatten(losses)), dtype=F64)
    expected = [torch.tensordot(w.to(J.dtype), J, 1) for J in oracle_jacobian(losses, targets)]
    gramjd.gram_backward(losses, lambda G: w.to(G.dtype), inputs=inputs, update="reuse")
    scale = max(float(update.abs().max()) for update in expected)
    for target, update in zip(targets, expected, strict=True):
        grad = torch.zeros_like(target) if target.grad is None else target.grad
        wide = grad.to_dense().to(update.dtype)
        torch.testing.assert_close(wide, update, rtol=1e-5, atol=max(1e-6, case.tol or 0.0) * scale)


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs(program: Program) -> None:
    losses = program.losses
    assume(all(loss.requires_grad and loss.numel() for loss in flatten([losses] if losses is None else losses)))
    expected = oracle_gramian(losses)
    assume(bool(expected.isfinite().all()) and bool(expected.norm() > 1e-12))
    for _ in range(2):
        assert_close_gramian(gramjd.gramian(losses), expected, 1e-11, "by passes")
    with only("walk"):
        assert_close_gramian(gramjd.gramian(losses), expected, 1e-11, "by a walk")


class Counted(torch.autograd.Function):
    """The identity, which notes that its backward was called."""

    @staticmethod
    def forward(ctx: object, x: Tensor, calls: list[str], name: str) -> Tensor:
        ctx.noted = calls, name  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:
        calls, name = ctx.noted  # type: ignore[attr-defined]
        calls.append(name)
        return gradient.clone(), None, None


@pytest.mark.parametrize("form", ["list", "stack", "cat"])
def test_heads_are_called_once_and_the_trunk_once_per_loss(form: str) -> None:
    trunk, heads, calls = nn.Linear(4, 3), [nn.Linear(3, 2) for _ in range(3)], []
    features = Counted.apply(trunk(torch.randn(5, 4)).tanh(), calls, "trunk")
    outs = [Counted.apply(head(features), calls, f"head {k}") for k, head in enumerate(heads)]
    losses = [out.square().mean() for out in outs]
    given = {"list": losses, "stack": torch.stack(losses), "cat": torch.cat([one.view(1) for one in losses])}[form]
    G = gramjd.gramian(given)
    assert sorted(calls) == ["head 0", "head 1", "head 2", "trunk", "trunk", "trunk"]
    assert relative_error(G.double(), oracle_gramian(given)) < 1e-6


def test_what_no_input_is_reached_through_is_not_called() -> None:
    trunk, head, calls = nn.Linear(4, 3), nn.Linear(3, 2), []
    features = Counted.apply(trunk(torch.randn(5, 4)), calls, "trunk")
    losses = Counted.apply(head(features), calls, "head").square().sum(1)
    gramjd.gramian(losses, head)
    assert set(calls) == {"head"}


def test_a_retained_grad_is_left_alone_and_filled_by_a_second_pass_only() -> None:
    p = torch.randn(3, dtype=F64, requires_grad=True)
    hidden = p.exp()
    hidden.retain_grad()
    gramjd.gram_backward(hidden.sin(), gramjd.Mean(), update="reuse", retain_graph=True)
    assert hidden.grad is None
    p.grad = None
    gramjd.gram_backward(hidden.sin(), gramjd.Sum())
    torch.testing.assert_close(hidden.grad, hidden.detach().cos())


def test_hooks_are_walked() -> None:
    model = mlp()
    hidden = model[:2](torch.randn(4, 5, dtype=F64))
    hidden.register_hook(lambda g: g / (1 + g.norm()))
    losses = model[2](hidden).square().sum(1)
    assert relative_error(gramjd.gramian(losses), oracle_gramian(losses)) < 1e-12


def test_hooks_on_accumulation_have_a_backward_pass() -> None:
    model, seen = mlp(), []
    model[2].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    losses = model(torch.randn(4, 5, dtype=F64)).square().sum(1)
    gramjd.gram_backward(losses, gramjd.Mean(), update="reuse")
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], model[2].weight.grad)


@pytest.mark.parametrize("known", [False, True], ids=["at once", "a structure that was not checkpointed before"])
def test_a_checkpoint_is_recomputed_once_per_pass(known: bool) -> None:
    model, runs = mlp(), []

    def segment(x: Tensor) -> Tensor:
        runs.append(1)
        return model(x)

    x = torch.randn(3, 5, dtype=F64)
    if known:
        gramjd.gramian(segment(x).square().sum(1))
    losses = checkpoint(segment, x, use_reentrant=False).square().sum(1)
    expected = oracle_gramian(losses)
    for _ in range(2):
        runs.clear()
        assert relative_error(gramjd.gramian(losses), expected) < 1e-12
    assert len(runs) == len(losses)


def test_several_dtypes_and_complex_leaves() -> None:
    a = torch.randn(4, dtype=F64, requires_grad=True)
    b = torch.randn(4, dtype=torch.complex128, requires_grad=True)
    c = torch.randn(4, dtype=torch.float32, requires_grad=True)
    losses = [(a * b).abs().square().sum(), (b * c).real.sum(), (b.imag * a).sum()]
    assert relative_error(gramjd.gramian(losses), oracle_gramian(losses)) < 1e-12
    w = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    expected = torch.autograd.grad(losses, [a, b, c], list(w), retain_graph=True)
    gramjd.gram_backward(losses, lambda G: w, update="reuse")
    for leaf, grad in zip((a, b, c), expected, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


def test_half_precision_is_accumulated_in_float32() -> None:
    w = torch.randn(64, dtype=torch.bfloat16, requires_grad=True)
    losses = [(w.float() * k).square().sum() for k in (1.0, 2.0)]
    G = gramjd.gramian(losses)
    assert G.dtype == torch.float32
    assert relative_error(G.double(), oracle_gramian(losses).double()) < 1e-6


def test_a_graph_that_is_gone_raises() -> None:
    losses = mlp()(torch.randn(3, 5, dtype=F64)).square().sum(1)
    gramjd.gram_backward(losses, update="reuse")
    with pytest.raises(RuntimeError, match="second time"):
        gramjd.gramian(losses)


def test_autocast_does_not_reach_the_products() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    losses = model(torch.randn(3, 8)).square().sum(1)
    expected = oracle_gramian(losses)
    with torch.autocast("cpu"):
        assert relative_error(gramjd.gramian(losses).double(), expected.double()) < 1e-6


def test_passes_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would pass with a walk, too."""
    ran: list[int] = []
    original = passes._pass

    def counted(*given: object) -> None:
        ran.append(1)
        original(*given)

    monkeypatch.setattr(passes, "_pass", counted)
    monkeypatch.setattr(compute, "_add_all", None)
    gramjd.gramian(mlp()(torch.randn(3, 5, dtype=F64)).square().sum(1))
    assert len(ran) == 3
