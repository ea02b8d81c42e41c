"""Plans: what was decided at a node serves other nodes and other data of the same structure, and no others."""

import threading
import zlib
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd import extend
from gramjd.engine import plan, rules, structure
from gramjd.engine.plan import NodePlan
from gramjd.errors import GramjdError
from gramjd.losses import Losses
from tests.oracle import assert_close_gramian, leaves, oracle_gramian
from tests.zoo import CASES, Case
from tests.zoo.registry import sandbox

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    plan.forget()


def plans() -> list[NodePlan]:
    return [one for variants in plan._known.plans.values() for one in variants]


def structures() -> int:
    return len(structure._kept.structures)


CHOSEN = [
    pytest.param(case, marks=[pytest.mark.slow] * case.slow, id=case.name)
    for case in CASES.values()
    if torch.float64 in case.dtypes and not case.may_refuse
]


def made(case: Case, seed: int) -> tuple[Losses, list[Tensor] | None]:
    with sandbox(zlib.crc32(case.name.encode()) + seed, torch.float64):
        built = case.build()
    return built if isinstance(built, tuple) else (built, None)


def norm_of(tensors: Iterable[Tensor]) -> float:
    return sum(float(t.to_dense().abs().double().square().sum()) for t in tensors) ** 0.5


@pytest.mark.parametrize("case", CHOSEN)
def test_other_data(case: Case) -> None:
    for seed in range(3):
        losses, inputs = made(case, seed)
        found = gramjd.gramian(losses, inputs)
    expected = oracle_gramian(losses, inputs if inputs is not None else leaves(losses))
    assert norm_of([found.double() - expected.double()]) <= (case.tol or 1e-12) * max(norm_of([expected]), 1e-300)


@pytest.mark.parametrize("case", CHOSEN)
def test_updates_from_other_data(case: Case) -> None:
    found: list[dict[int, Tensor]] = []
    for update in ("reuse", "reuse", "reuse", "backward"):
        losses, inputs = made(case, min(len(found), 2))
        reached = leaves(losses)
        gramjd.gram_backward(losses, lambda G: torch.linspace(-0.5, 1, len(G)), inputs=inputs, update=update)
        found.append({n: t.grad.to_dense() for n, t in enumerate(reached) if t.grad is not None})
        for t in reached:
            t.grad = None
    last, expected = found[2:]
    assert last.keys() == expected.keys()
    gap = norm_of(last[n] - expected[n] for n in expected)
    # Some of the Hugging Face models cast to float32 inside, and round each row or the sum of them.
    assert gap <= max(case.tol or 0, 1e-11 if not case.name.startswith("hf-") else 1e-6) * norm_of(expected.values())


def repeated(build: Callable[[int], Tensor], times: int = 3) -> list[Tensor]:
    return [gramjd.gramian(build(n)) for n in range(times)]


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the nodes whose rule is run."""
    names: list[str] = []
    original = rules.rule_for

    def noted(graph: object, node: object) -> object:
        rule = original(graph, node)

        def run(view: extend.NodeView) -> object:
            names.append(view.name)
            return rule(view)

        return run

    monkeypatch.setattr(rules, "rule_for", noted)
    return names


def test_rules_decide_once(decided: list[str]) -> None:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(5, 5), nn.Tanh())))
    assert_right(lambda _: model(torch.randn(6, 5)).square().sum(1), 1)
    first = len(decided)
    assert first > 8
    assert_right(lambda _: model(torch.randn(6, 5)).square().sum(1), 3)
    assert len(decided) == first


def test_a_node_that_reads_an_index_decides_alone(decided: list[str]) -> None:
    model, last = nn.Sequential(nn.Linear(5, 5), nn.Tanh()), nn.Linear(5, 2)
    assert_right(lambda n: last(model(torch.randn(6, 5))[:, torch.arange(5).roll(n)]).square().sum(1), 1)
    decided.clear()
    assert_right(lambda n: last(model(torch.randn(6, 5))[:, torch.arange(5).roll(n)]).square().sum(1), 3)
    assert set(decided) == {"IndexBackward0"}


def test_plans_and_walks_agree_on_what_arrives() -> None:
    """A plan first, so that the walk finds what the plan decided."""
    for case in list(CASES.values())[::9]:
        if case.slow or case.may_refuse or torch.float64 not in case.dtypes:
            continue
        losses, inputs = made(case, 0)
        before = gramjd.explain(losses, inputs)
        gramjd.gramian(losses, inputs)
        assert gramjd.explain(losses, inputs).to_dict() == before.to_dict(), case.name


def test_threads_have_plans_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    wrong: list[float] = []

    def train(seed: int) -> None:
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(20):
            losses = model(x).square().sum(1)
            gap = gramjd.gramian(losses, model) - oracle_gramian(losses, list(model.parameters()))
            wrong.extend([float(gap.norm())] if gap.norm() > 1e-10 else [])

    threads = [threading.Thread(target=train, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_shapes_are_other_structures() -> None:
    model = nn.Linear(4, 3)
    for m in (5, 6, 5, 6, 5, 6):
        losses = model(torch.randn(m, 4)).square().sum(1)
        expected = oracle_gramian(losses, list(model.parameters()))
        torch.testing.assert_close(gramjd.gramian(losses).double(), expected, rtol=1e-5, atol=1e-6)
    assert structures() == 2


def assert_right(build: Callable[[int], Tensor], times: int = 5) -> None:
    for n in range(times):
        losses = build(n)
        expected = oracle_gramian(losses, leaves(losses))
        # By the norm: an entry in which much cancels has fewer digits of its own.
        assert_close_gramian(gramjd.gramian(losses), expected, 2e-6)


W = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
X = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))


def joined(cut: int) -> Tensor:
    return torch.cat([X[0, :, :cut], X[0] @ W, X[0, :, cut:]], 1)[:, :4]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda n: ((X @ W).sin().sum(dim=1 + n // 3)).square().sum(1), id="a dimension changes"),
        pytest.param(lambda n: (X @ W).sin().transpose(0, n // 3).square().sum((1, 2)), id="a transposition changes"),
        pytest.param(lambda n: torch.addmm(X[0], X[1], W, alpha=1 + n // 3).square().sum(1), id="a factor changes"),
        pytest.param(lambda n: ((X[0].T if n > 2 else X[0]) @ W).square().sum(1), id="strides change"),
        pytest.param(lambda n: (X.flatten()[n : n + 16].view(4, 4) @ W).square().sum(1), id="an offset changes"),
        pytest.param(lambda n: W[torch.arange(4).roll(n)].square().sum(1), id="indices change"),
        pytest.param(lambda n: torch.where(X[n % 4] > 0, X[0] @ W, W).square().sum(1), id="a mask changes"),
        pytest.param(lambda n: joined(1 + n % 3).square().sum(1), id="where parts of a concatenation begin"),
        pytest.param(lambda n: (X @ W)[torch.tensor(n % 4)].square().sum(1), id="an index without a dimension"),
        pytest.param(lambda n: nn.functional.dropout(X[0] @ W, 0.5).square().sum(1), id="dropout"),
    ],
)
def test_what_shapes_do_not_show(build: Callable[[int], Tensor]) -> None:
    assert_right(build)


def test_convolutions_of_slices_of_a_batch() -> None:
    data, layer = torch.randn(24, 2, 6, 6), nn.Conv2d(2, 3, 3)
    assert_right(lambda n: layer(data[4 * n : 4 * n + 4]).square().sum((1, 2, 3)))
    assert structures() == 1


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3), nn.Linear(6, 3), nn.LayerNorm(6)], ids=repr)
def test_two_saved_tensors_that_are_one_at_first(layer: nn.Module) -> None:
    def losses(n: int) -> Tensor:
        x = torch.randn(4, 2, 6, 6)
        y = x if n < 3 else torch.randn(4, 2, 6, 6)
        return (layer(x) * layer(y)).sum((1, 2, 3))

    assert_right(losses)
    assert structures() == 1


# torch.func.hessian calls it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_saved_tensors_without_memory() -> None:
    layer = nn.Linear(4, 4)
    hessian = torch.func.vmap(torch.func.hessian(lambda x: layer(x).tanh().sum()))
    assert_right(lambda n: hessian(torch.randn(5, 4)).square().sum((1, 2)))


def test_hooks_that_come_later_are_run() -> None:
    model = nn.Linear(3, 2)

    def losses() -> Tensor:
        return model(torch.ones(4, 3)).square().sum(1)

    for _ in range(3):
        plain = gramjd.gramian(losses())
    handle = model.weight.register_hook(lambda g: 2 * g)
    assert float(gramjd.gramian(losses(), model.weight).sum()) > 0
    hooked = gramjd.gramian(losses())
    handle.remove()
    assert not torch.allclose(hooked, plain)
    torch.testing.assert_close(gramjd.gramian(losses()), plain)


def test_a_rule_of_ones_own_is_asked_every_time() -> None:
    asked: list[int] = []

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return 2 * g

    def rule(node: extend.NodeView) -> extend.Sends:
        asked.append(1)
        return extend.pointwise(node)

    extend.register_rule("TwiceBackward", rule)
    try:
        model = nn.Linear(3, 2)
        repeated(lambda _: Twice.apply(model(torch.randn(4, 3))).square().sum(1), 4)
        assert len(asked) == 4
    finally:
        extend.unregister_rule("TwiceBackward")


def test_a_freed_graph_is_an_error_still() -> None:
    model = nn.Linear(3, 2)
    repeated(lambda _: model(torch.ones(4, 3)).square().sum(1))
    losses = model(torch.ones(4, 3)).square().sum(1)
    losses.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        gramjd.gramian(losses)


def test_an_edited_tensor_is_an_error_still() -> None:
    model = nn.Linear(3, 2)

    def losses() -> tuple[Tensor, Tensor]:
        out = model(torch.ones(4, 3))
        return out.exp(), out

    for _ in range(3):
        gramjd.gramian(losses()[0])
    edited, _ = losses()
    edited.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gramjd.gramian(edited)


def test_old_structures_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MOST", 3)
    monkeypatch.setattr(plan, "MOST", 5)
    w = torch.ones(9, requires_grad=True)
    for m in range(1, 9):
        gramjd.gramian(w[:m] * 2)
    assert structures() == 3
    assert len(plan._known.plans) == 5


def test_large_graphs_are_not_kept_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MOST_NODES", 10)
    w = torch.ones(9, requires_grad=True)
    for m in range(1, 9):
        gramjd.gramian(w[:m].sin().cos().sin() * 2)
    assert structures() == 1


def test_a_plan_holds_no_tensor_of_the_step() -> None:
    import gc
    import weakref

    model = nn.Linear(3, 2)
    repeated(lambda _: model(torch.ones(4, 3)).square().sum(1), 2)
    x = torch.ones(4, 3)
    losses = model(x).square().sum(1)
    gramjd.gramian(losses)
    alive = weakref.ref(x)
    del x, losses
    gc.collect()
    assert alive() is None
    assert plans()


def test_shares_and_norms_have_the_same_plans() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for _ in range(4):
        losses = model(torch.randn(5, 3)).square().sum(1)
        whole = gramjd.gramian(losses)
        torch.testing.assert_close(sum(gramjd.gramian(losses, per_parameter=True).values()), whole)
        torch.testing.assert_close(gramjd.gradient_norms(losses) ** 2, whole.diagonal())
    assert structures() == 1


def test_errors_are_the_same_every_time() -> None:
    layer = nn.Linear(3, 2)
    for _ in range(4):
        with pytest.raises(GramjdError, match="not reached"):
            gramjd.gramian(layer(torch.ones(2, 3)).sum(1), torch.ones(2, requires_grad=True))
