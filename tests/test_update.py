"""`update="reuse"`: the gradients of a second backward pass, from what the walk computed."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd import backward
from gramjd.errors import GramjdError, InputError
from tests.oracle import flatten, leaves
from tests.zoo import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


def drawn(G: Tensor) -> Tensor:
    """Weights of both signs, the same for the same m."""
    return torch.randn(len(G), generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(G.dtype)


def gradients(case: Case, update: str) -> list[Tensor | None]:
    losses, inputs = case.make(torch.float64)
    reached = leaves(losses)
    gramjd.gram_backward(losses, drawn, inputs=inputs, update=update)
    return [None if t.grad is None else t.grad.to_dense() for t in reached]


CHOSEN = [
    case
    for n, case in enumerate(CASES.values())
    if (n % 4 == 0 or "hook" in case.name or "tied" in case.name) and torch.float64 in case.dtypes
]


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * c.slow, id=c.name) for c in CHOSEN])
def test_same_gradients_as_backward(case: Case) -> None:
    try:
        expected = gradients(case, "backward")
    except GramjdError:
        if not case.may_refuse:
            raise
        return
    found = gradients(case, "reuse")
    assert [g is None for g in found] == [g is None for g in expected]
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if f is not None and e is not None]
    size = sum(float(e.abs().square().sum()) for _, e in pairs) ** 0.5
    gap = sum(float((f - e).abs().square().sum()) for f, e in pairs) ** 0.5
    # Some of the Hugging Face models cast to float32 inside, and round each row or the sum of them.
    assert gap <= (case.tol or (1e-6 if case.name.startswith("hf") else 1e-11)) * size


def network() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return model, F.cross_entropy(model(torch.randn(6, 5)), torch.randint(3, (6,)), reduction="none")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a backward pass with real gradients went through the graph."""
    calls: list[int] = []
    original = backward.weighted_backward

    def note(*args: object) -> None:
        calls.append(1)
        original(*args)

    monkeypatch.setattr(backward, "weighted_backward", note)
    return calls


def test_no_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    model, losses = network()
    gramjd.gram_backward(losses, update="reuse")
    assert not calls
    assert all(p.grad is not None for p in model.parameters())


def test_adds_to_what_is_there() -> None:
    model, losses = network()
    gramjd.gram_backward(losses, drawn, update="reuse", retain_graph=True)
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    gramjd.gram_backward(losses, drawn, update="reuse")
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_frees_the_graph() -> None:
    _, losses = network()
    saved = losses.grad_fn.next_functions[0][0]
    gramjd.gram_backward(losses, update="reuse")
    with pytest.raises(RuntimeError, match="second time"):
        _ = saved._saved_result
    with pytest.raises(RuntimeError, match="second time"):
        gramjd.gram_backward(losses, update="reuse")


def test_retains_the_graph() -> None:
    _, losses = network()
    gramjd.gram_backward(losses, update="reuse", retain_graph=True)
    assert losses.grad_fn.next_functions[0][0]._saved_result is not None
    losses.sum().backward()


def test_keeps_nothing_after_the_step() -> None:
    model, losses = network()
    gramjd.gram_backward(losses, update="reuse", retain_graph=True)
    weight = weakref.ref(model[0].weight)
    del losses, model
    gc.collect()
    assert weight() is None


def test_only_the_inputs_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    model, losses = network()
    gramjd.gram_backward(losses, inputs=model[2].parameters(), gramian_inputs=model.parameters(), update="reuse")
    assert [p.grad is None for p in model.parameters()] == [True, True, False, False]
    assert not calls


def test_inputs_that_were_not_walked_to_get_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    torch.manual_seed(1)
    model, losses = network()
    step = gramjd.gram_backward(losses, gramian_inputs=model[2].parameters(), update="reuse", retain_graph=True)
    assert len(calls) == 1
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses.backward(step.weights)
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_hooks_see_one_gradient() -> None:
    model, losses = network()
    seen: list[Tensor] = []
    model[0].weight.register_hook(lambda g: seen.append(g) or g.clamp(-1e-3, 1e-3))
    gramjd.gram_backward(losses, drawn, update="reuse")
    assert float(model[0].weight.grad.abs().max()) == pytest.approx(1e-3)


def test_post_accumulate_hooks_run_once() -> None:
    model, losses = network()
    seen: list[nn.Parameter] = []
    model[0].weight.register_post_accumulate_grad_hook(seen.append)
    gramjd.gram_backward(losses, update="reuse")
    assert len(seen) == 1
    assert seen[0] is model[0].weight


def test_sparse_embeddings_stay_sparse() -> None:
    table = nn.Embedding(20, 4, sparse=True)
    losses = table(torch.randint(20, (5, 3))).square().sum((1, 2))
    gramjd.gram_backward(losses, update="reuse")
    assert table.weight.grad.is_sparse


def test_custom_functions_are_not_run_again() -> None:
    runs: list[int] = []

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            runs.append(1)
            return 3 * ctx.saved_tensors[0] ** 2 * g

    model = nn.Linear(4, 3)
    losses = Cube.apply(model(torch.randn(5, 4))).sum(1)
    gramjd.gramian(losses)
    walked = len(runs)
    gramjd.gram_backward(losses, update="reuse")
    assert len(runs) == 2 * walked


def test_rows_beyond_the_budget_get_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    model, losses = network()
    gramjd.gram_backward(losses, drawn, update="reuse", memory_budget=64, retain_graph=True)
    assert len(calls) == 1
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses.backward(drawn(losses))
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_weights_that_fail_leave_grad_alone() -> None:
    model, losses = network()
    with pytest.raises(GramjdError):
        gramjd.gram_backward(losses, lambda G: G.new_full((len(G),), float("nan")), update="reuse")
    assert all(p.grad is None for p in model.parameters())


def test_unknown_update() -> None:
    _, losses = network()
    with pytest.raises(InputError, match=r"'forward'.*'backward', 'reuse'"):
        gramjd.gram_backward(losses, update="forward")


def test_explain_says_what_is_kept() -> None:
    _, losses = network()
    plan = gramjd.explain(losses)
    graph = gramjd.engine.compute.read([losses], None)
    kept = gramjd.engine.compute.gramian_and_rows(graph, [losses], None, None)[1]
    assert plan.bytes == kept.nbytes
    assert len(flatten(losses)) == plan.losses


def test_what_was_changed_in_place_elsewhere_in_the_graph_is_no_matter() -> None:
    found = []
    for update in ("backward", "reuse"):
        x, y = torch.randn(3, 4), torch.linspace(-1, 1, 12).view(3, 4)
        v, w = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
        losses = (x * v).sum(1) + (y * w).sin().sum(1)
        x.add_(1)
        gramjd.gram_backward(losses, gramjd.Mean(), inputs=[w], update=update)
        assert w.grad is not None
        assert v.grad is None
        found.append(w.grad)
    torch.testing.assert_close(*found)


def test_a_checkpoint_is_recomputed_once() -> None:
    calls: list[int] = []
    layer = nn.Linear(3, 3)

    def segment(x: Tensor) -> Tensor:
        calls.append(1)
        return layer(x).tanh()

    for step in range(1, 4):
        losses = checkpoint(segment, torch.randn(4, 3), use_reentrant=False).square().sum(1)
        gramjd.gram_backward(losses, gramjd.Mean(), update="reuse")
        assert len(calls) == 2 * step
