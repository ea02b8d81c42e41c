"""One Gramian over several micro-batches: G and update against the float64 Jacobian of all losses together."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd import Accumulator
from gramjd.engine import compute
from gramjd.engine.consumers.batches import Batch
from gramjd.engine.memory import MemoryLimits
from gramjd.errors import AggregatorError, BudgetError, GramjdError, GraphError, InputError, LossError
from gramjd.profiling.bench.models import GPT
from tests.oracle import leaves, oracle_gramian, oracle_jacobian, relative_error, tolerance
from tests.small import F64, batch_norm_net, clear, cnn, encoder, mlp
from tests.zoo import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


def drawn(G: Tensor) -> Tensor:
    """Weights of both signs, the same for the same m."""
    return torch.randn(len(G), generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(G.dtype)


def sample_losses(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().flatten(1).sum(1)


def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1]).transpose(1, 2)
    return F.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(1)


class Branches(nn.Module):
    """Experts of which a batch reaches one, and a weight that all use twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.experts = nn.Linear(5, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[int(x[0, 0] > 0)](self.shared(self.shared(x).tanh()))


class Checkpointed(nn.Module):
    """A dropout layer inside a checkpoint: what is computed again must be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Tanh())
        self.outer = nn.Linear(6, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(checkpoint(self.inner, x, use_reentrant=False))


def vectors(*signs: int) -> list[Tensor]:
    found = [torch.randn(3, 5, dtype=F64) for _ in signs]
    for x, sign in zip(found, signs, strict=True):
        x[0, 0] = sign * x[0, 0].abs()
    return found


Made = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], list[Tensor]]
MODELS: dict[str, Callable[[], Made]] = {
    "mlp": lambda: (mlp(), sample_losses, vectors(1, 1, -1)),
    "images": lambda: (cnn(), sample_losses, [torch.randn(b, 2, 6, 6, dtype=F64) for b in (2, 3)]),
    "attention": lambda: (encoder(), sample_losses, [torch.randn(b, 4, 8, dtype=F64) for b in (3, 2)]),
    "tied": lambda: (
        GPT(7, 6, 1, 64).double(),
        token_losses,
        [torch.randint(7, (b, length)) for b, length in ((2, 5), (3, 4))],
    ),
    "mixing": lambda: (batch_norm_net(), sample_losses, vectors(1, 1)),
    "experts": lambda: (Branches(), sample_losses, vectors(1, -1, 1)),
    "checkpointed": lambda: (Checkpointed(), sample_losses, vectors(1, 1, 1)),
}


def expected(model: nn.Module, losses: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """G and `J^T w` of all losses together."""
    parameters = list(model.parameters())
    G = oracle_gramian(list(losses), parameters)
    w = drawn(G)
    return G, [torch.tensordot(w, J, 1) for J in oracle_jacobian(list(losses), parameters)]


@pytest.mark.parametrize("keep", ["device", "cpu", "nothing"])
@pytest.mark.parametrize("name", MODELS)
def test_gramian_and_update_are_those_of_all_losses(name: str, keep: str) -> None:
    model, losses_of, batches = MODELS[name]()
    torch.manual_seed(3)  # the same dropout in both
    G, update = expected(model, [losses_of(model, batch) for batch in batches])
    torch.manual_seed(3)
    accumulator = Accumulator(drawn, keep=keep)
    for batch in batches:
        if keep == "nothing":
            accumulator.add(losses_of, model, batch)
        else:
            accumulator.add(losses_of(model, batch))
    assert len(accumulator) == len(G)
    assert (accumulator.bytes > 0) == (keep != "nothing")
    step = accumulator.step()
    assert relative_error(step.gramian, G) < 1e-12
    for p, g in zip(model.parameters(), update, strict=True):
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert float((got - g).norm()) <= 1e-12 * float(sum(u.norm() for u in update))
    assert len(accumulator) == 0
    assert accumulator.bytes == 0


CHOSEN = [
    case
    for n, case in enumerate(CASES.values())
    if (n % 4 == 1 or "tied" in case.name or "embedding" in case.name) and torch.float64 in case.dtypes
]


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * c.slow, id=c.name) for c in CHOSEN])
def test_products_of_every_kind_of_factor(case: Case) -> None:
    """The losses of one graph, in two parts: blocks beside the diagonal are products of two walks."""
    losses, inputs = case.make(torch.float64)
    whole = losses if isinstance(losses, Tensor) else torch.cat([loss.reshape(-1) for loss in losses])
    if whole.numel() < 2:
        pytest.skip("one loss has no parts")
    reached = leaves(losses) if inputs is None else list(inputs)
    flat = whole.reshape(-1)
    cut = flat.numel() // 2
    accumulator = Accumulator(drawn, inputs=[t for t in reached if t.is_leaf])
    try:
        for part in (flat[:cut], flat[cut:]):
            accumulator.add(part, retain_graph=True)
        step = accumulator.step()
    except (InputError, GraphError):
        return  # says that it cannot be kept (hooks, sparse embeddings, inputs that are no leaves)
    counted = [t for t in reached if t.is_leaf]
    G = oracle_gramian(whole, counted)
    limit = 100 * tolerance(case, torch.float64)
    assert relative_error(step.gramian, G) < limit
    w, rows = drawn(G), oracle_jacobian(whole, counted)
    size = sum(float(torch.tensordot(w.to(J.dtype), J, 1).norm()) for J in rows)
    for t, J in zip(counted, rows, strict=True):
        got = torch.zeros_like(t) if t.grad is None else t.grad
        assert float((got - torch.tensordot(w.to(J.dtype), J, 1)).norm()) <= max(limit, 1e-6 * ("hf" in case.name)) * (
            size or 1.0
        )


def test_float32_is_as_exact_as_one_call() -> None:
    model = mlp(5, 6, 4, dtype=torch.float32)
    batches = [torch.randn(4, 5) for _ in range(3)]
    step = gramjd.gram_backward([sample_losses(model, x) for x in batches])
    together = [p.grad.clone() for p in model.parameters()]
    clear(model.parameters())
    accumulator = Accumulator()
    for x in batches:
        accumulator.add(sample_losses(model, x))
    apart = accumulator.step()
    torch.testing.assert_close(apart.gramian, step.gramian, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close([p.grad for p in model.parameters()], together, rtol=1e-4, atol=1e-5)


def test_bfloat16_gets_a_float32_gramian() -> None:
    model = mlp(5, 6, 4, dtype=torch.bfloat16)
    batches = [torch.randn(4, 5, dtype=torch.bfloat16) for _ in range(2)]
    accumulator = Accumulator(gramjd.Mean())
    for x in batches:
        accumulator.add(sample_losses(model, x))
    step = accumulator.step()
    assert step.gramian.dtype == torch.float32
    assert relative_error(step.gramian, oracle_gramian([sample_losses(model, x) for x in batches])) < 3e-2
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}


def test_adds_to_what_is_there_and_starts_anew() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    accumulator = Accumulator(drawn)
    for _ in range(2):
        accumulator.add(sample_losses(model, x))
        accumulator.step()
    once = expected(model, [sample_losses(model, x)])[1]
    torch.testing.assert_close([p.grad for p in model.parameters()], [2 * g for g in once])


def test_an_aggregator_that_takes_losses_gets_all() -> None:
    model, seen = mlp(), []

    class Watches:
        takes_losses = True

        def __call__(self, G: Tensor, losses: Tensor) -> Tensor:
            seen.append(losses)
            return torch.ones(len(G), dtype=G.dtype)

    batches = [torch.randn(b, 5, dtype=F64) for b in (2, 3)]
    accumulator = Accumulator(Watches())
    for x in batches:
        accumulator.add(model(x).square())  # [b, 4]: samples and tasks
    accumulator.step()
    torch.testing.assert_close(seen[0], torch.cat([model(x).square().detach() for x in batches]))


# -- memory and work --------------------------------------------------------------------------------------------------


def test_graphs_are_freed_and_bytes_counted() -> None:
    model, x = mlp(50, 40, 30), torch.randn(8, 50, dtype=F64)
    accumulator = Accumulator(gramjd.Mean())
    losses = sample_losses(model, x)
    node = losses.grad_fn.next_functions[0][0].next_functions[0][0]
    accumulator.add(losses)
    with pytest.raises(RuntimeError, match="second time"):
        _ = node._saved_mat1
    # The inputs of both layers and the cotangents of their outputs, 8 bytes a number.
    assert accumulator.bytes == 8 * 8 * (50 + 40 + 40 + 30)
    assert accumulator.explain(sample_losses(model, x), 3).to_dict()["device"]["bytes"] >= 3 * accumulator.bytes
    accumulator.add(sample_losses(model, torch.randn(8, 50, dtype=F64)))
    assert accumulator.bytes == 2 * 8 * 8 * (50 + 40 + 40 + 30)


def test_one_input_of_several_layers_is_kept_once() -> None:
    layers, x = nn.ModuleList(nn.Linear(60, 2, dtype=F64) for _ in range(3)), torch.randn(4, 60, dtype=F64)
    accumulator = Accumulator(gramjd.Mean(), keep="cpu")
    accumulator.add(sum(layer(x).square().sum(1) for layer in layers))
    assert accumulator.bytes < 1.5 * x.nbytes


def test_what_is_kept_elsewhere_is_moved_once() -> None:
    """A device without numbers stands for another one."""
    layers, x = nn.ModuleList(nn.Linear(60, 2, dtype=F64) for _ in range(3)), torch.randn(4, 60, dtype=F64)
    batch = Batch(4, torch.device("meta"))
    losses = [sum(layer(x).square().sum(1) for layer in layers)]
    graph = compute.read(losses, None)
    compute.at_once(graph, losses, lambda e, j: batch.keep(graph.targets[e], j, True), MemoryLimits(math.inf), "")
    held = [t for j in batch.jacobians.values() for f in j.factors for t in f.tensors]
    assert {t.device.type for t in held} == {"meta"}
    inputs = [t for t in held if t.shape[-1] == 60]
    assert len(inputs) == 3
    assert len({id(t) for t in inputs}) == 1
    assert {id(leaf) for leaf in graph.targets.values()} == set(batch.jacobians) == batch.counted


def test_nothing_is_held_after_the_step() -> None:
    model = mlp()
    accumulator = Accumulator(gramjd.Mean())
    accumulator.add(sample_losses(model, torch.randn(3, 5, dtype=F64)))
    accumulator.step()
    clear(model.parameters())
    weight = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert weight() is None


class Counted:
    """A function of a batch that counts its calls."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return sample_losses(self.model, x)


@pytest.mark.parametrize(("keep", "budget"), [("device", None), ("nothing", None), ("device", 0), ("cpu", 2500)])
def test_forward_passes_are_those_of_the_plan(keep: str, budget: int | None) -> None:
    model, batches = mlp(), [torch.randn(4, 5, dtype=F64) for _ in range(4)]
    losses_of = Counted(model)
    accumulator = Accumulator(drawn, keep=keep, memory_budget=budget)
    plan = accumulator.explain(losses_of(batches[0]), 4).to_dict()
    losses_of.calls = 0
    for x in batches:
        accumulator.add(losses_of, x)
    step = accumulator.step()
    G, update = expected(model, [sample_losses(model, x) for x in batches])
    assert relative_error(step.gramian, G) < 1e-12
    torch.testing.assert_close([p.grad for p in model.parameters()], update)
    if budget == 2500:  # room for three of the four
        assert losses_of.calls == 4 + 1
    else:
        assert losses_of.calls == plan["nothing" if budget == 0 else keep]["forward"]


def test_the_plan_is_a_table() -> None:
    text = str(Accumulator().explain(sample_losses(mlp(), torch.randn(3, 5, dtype=F64)), 4))
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["device", "cpu", "nothing"]
    assert "4 micro-batches of 3 losses" in text


# -- what is refused --------------------------------------------------------------------------------------------------


def test_refuses_what_is_no_loss_and_stays_as_it_was() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    accumulator = Accumulator()
    with pytest.raises(LossError, match="there are no losses"):
        accumulator.step()
    accumulator.add(sample_losses(model, x))
    for bad in (torch.ones(3), sample_losses(model, x) / 0):
        with pytest.raises(LossError):
            accumulator.add(bad)
    with pytest.raises(InputError, match="arguments go with a function"):
        accumulator.add(sample_losses(model, x), x)
    assert len(accumulator) == 3
    assert accumulator.step().gramian.shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"keep": "gpu"}, InputError, "keep is 'gpu'"),
        ({"nonfinite": "skip"}, InputError, "nonfinite"),
        ({"memory_budget": -1}, InputError, "memory_budget"),
        ({"aggregator": gramjd.GradDrop()}, AggregatorError, "one gram_backward"),
        ({"aggregator": "upgrad"}, AggregatorError, "the aggregator"),
        ({"inputs": [torch.ones(2, requires_grad=True) * 2]}, InputError, "leaves only"),
    ],
)
def test_refuses_options(options: dict[str, object], error: type[GramjdError], words: str) -> None:
    with pytest.raises(error, match=words):
        Accumulator(**options)


def test_what_cannot_be_kept_is_named_and_done_with_a_function() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)

    def hooked(x: Tensor) -> Tensor:
        hidden = model[1](model[0](x))
        hidden.register_hook(lambda g: 2 * g)
        return model[2](hidden).square().sum(1)

    with pytest.raises(InputError, match=r"hooks on tensors.*add\(losses_of, batch\)"):
        Accumulator().add(hooked(x))
    accumulator = Accumulator(drawn)
    accumulator.add(hooked, x)
    step = accumulator.step()
    G, update = expected(model, [hooked(x)])
    assert relative_error(step.gramian, G) < 1e-12
    torch.testing.assert_close([p.grad for p in model.parameters()], update)


def test_a_sparse_embedding_needs_a_function() -> None:
    table = nn.Embedding(5, 3, sparse=True, dtype=F64)
    ids = torch.tensor([[0, 1], [1, 4]])
    with pytest.raises(InputError, match="sparse gradient"):
        Accumulator().add(table(ids).square().sum((1, 2)))
    accumulator = Accumulator(drawn)
    accumulator.add(lambda ids: table(ids).square().sum((1, 2)), ids)
    accumulator.step()
    assert table.weight.grad.layout == torch.sparse_coo


def test_the_budget_names_what_to_do() -> None:
    model = mlp()
    accumulator = Accumulator(memory_budget=100)
    with pytest.raises(BudgetError, match=r"raise it to at least \d+ bytes.*function"):
        accumulator.add(sample_losses(model, torch.randn(30, 5, dtype=F64)))
    with pytest.raises(InputError, match='keep="nothing"'):
        Accumulator(keep="nothing").add(sample_losses(model, torch.randn(3, 5, dtype=F64)))


@pytest.mark.parametrize("what", ["parameter", "data", "activation"])
def test_what_was_written_to_is_found(what: str) -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    hidden = model[1](model[0](x))
    accumulator = Accumulator()
    accumulator.add(model[2](hidden).square().sum(1))
    with torch.no_grad():
        {"parameter": model[0].bias, "data": x, "activation": hidden}[what].add_(1)
    with pytest.raises(GraphError, match="modified in place after it was added"):
        accumulator.step()
    assert model[0].weight.grad is None
    accumulator.reset()
    accumulator.add(sample_losses(model, x))
    accumulator.step()


def test_a_function_that_returns_others_is_found() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    accumulator = Accumulator(keep="nothing")
    accumulator.add(sample_losses, model, x)
    with torch.no_grad():
        model[0].weight.add_(1e-3)
    with pytest.raises(LossError, match="returned other losses than the first time"):
        accumulator.step()
    calls = iter((x, x[:2]))
    accumulator = Accumulator(keep="nothing")
    accumulator.add(lambda: sample_losses(model, next(calls)))
    with pytest.raises(LossError, match=r"shapes \[\(3,\)\], then \[\(2,\)\]"):
        accumulator.step()


def test_inputs_may_be_reached_by_some_micro_batches_only() -> None:
    model = Branches()
    x, y = vectors(1, -1)
    accumulator = Accumulator(drawn, inputs=list(model.parameters()))
    accumulator.add(sample_losses(model, x))
    with pytest.raises(InputError, match=r"input \d .*not reached by any loss of any micro-batch"):
        accumulator.step()
    accumulator.add(sample_losses(model, y))
    accumulator.step()
    update = expected(model, [sample_losses(model, x), sample_losses(model, y)])[1]
    torch.testing.assert_close([p.grad for p in model.parameters()], update)


def test_a_micro_batch_may_reach_no_input() -> None:
    model = Branches()
    batches = vectors(1, -1)
    for keep in ("device", "nothing"):
        clear(model.parameters())
        accumulator = Accumulator(drawn, inputs=model.experts[0], keep=keep)
        for x in batches:
            accumulator.add(sample_losses, model, x)
        step = accumulator.step()
        assert step.gramian[:3].abs().max() == 0
        assert step.gramian[3:, 3:].diagonal().min() > 0
        expert = expected(model.experts[0], [sample_losses(model, x) for x in batches])[1]
        torch.testing.assert_close([p.grad for p in model.experts[0].parameters()], expert)
        assert model.shared.weight.grad is None


def test_a_function_may_return_names() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    for keep in ("device", "nothing"):
        accumulator = Accumulator(keep=keep)
        for tag in "ab":
            accumulator.add(lambda tag: {tag: sample_losses(model, x).mean(), "gone": None}, tag)
        assert accumulator.step().names == ("a", "b")


def test_inputs_alone_get_gradients() -> None:
    model = mlp()
    batches = [torch.randn(3, 5, dtype=F64) for _ in range(2)]
    for keep in ("device", "nothing"):
        clear(model.parameters())
        accumulator = Accumulator(drawn, inputs=model[2], keep=keep)
        for x in batches:
            accumulator.add(sample_losses, model, x)
        step = accumulator.step()
        assert model[0].weight.grad is None
        whole = [sample_losses(model, x) for x in batches]
        assert relative_error(step.gramian, oracle_gramian(whole, list(model[2].parameters()))) < 1e-12
        assert model[2].weight.grad is not None


@pytest.mark.parametrize("keep", ["device", "nothing"])
def test_not_finite_passes_where_asked_for(keep: str) -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    accumulator = Accumulator(keep=keep, nonfinite="pass")
    for factor in (1.0, float("inf"), 1.0):
        accumulator.add(lambda f: sample_losses(model, x) * f, factor)
    step = accumulator.step()
    assert step.gramian.isnan().all()
    assert all(p.grad.isnan().all() for p in model.parameters())


def test_an_aggregator_that_fails_changes_nothing() -> None:
    model, x = mlp(), torch.randn(3, 5, dtype=F64)
    accumulator = Accumulator(lambda G: G)
    accumulator.add(sample_losses(model, x))
    with pytest.raises(AggregatorError, match=r"expected \(3,\)"):
        accumulator.step()
    assert len(accumulator) == 3
    assert model[0].weight.grad is None
    accumulator.aggregator = drawn
    accumulator.step()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected(model, [sample_losses(model, x)])[1])


def test_autocast_is_that_of_the_first_time() -> None:
    model = mlp(5, 6, 4, dtype=torch.float32)
    batches = [torch.randn(4, 5) for _ in range(2)]
    found = {}
    for keep in ("device", "nothing"):
        clear(model.parameters())
        accumulator = Accumulator(gramjd.Mean(), keep=keep)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for x in batches:
                accumulator.add(sample_losses, model, x)
        found[keep] = accumulator.step().gramian
    torch.testing.assert_close(found["device"], found["nothing"], rtol=1e-5, atol=1e-6)
