"""What a graph remembers, what cannot be one, and what is checked before it is relied on."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.errors import CompileError, FallbackWarning, InputError, LossError
from tests.compiled.training import assert_same_training, batches, cross, network, run

EAGER = pytest.mark.filterwarnings("ignore::gramjd.errors.FallbackWarning")


# -- values from outside ---------------------------------------------------------------------------------------------


TEMPERATURE = 1.0


def test_values_that_a_function_reads_itself_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(6, 3)
    model.scale = 1.0  # type: ignore[assignment]
    factor = 1.0

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x) * model.scale * factor * TEMPERATURE, y, reduction="none")

    step = gramjd.compile(losses, model, mode="graph")
    batch = batches(1)[0]

    def right() -> bool:
        return all(torch.allclose(step(*batch).losses, losses(*batch).detach()) for _ in range(3))

    assert right()
    factor = 2.0
    assert right()
    model.scale = 3.0  # type: ignore[assignment]
    assert right()
    monkeypatch.setitem(globals(), "TEMPERATURE", 5.0)
    assert right()
    assert step.graphs == 4


def test_what_is_hidden_deeper_is_frozen() -> None:
    class Options:
        factor = 1.0

    model, options = nn.Linear(6, 3), Options()
    step = gramjd.compile(
        lambda x, y: cross_entropy(model(x) * options.factor, y, reduction="none"), model, mode="graph"
    )
    batch = batches(1)[0]
    before = [step(*batch).losses for _ in range(3)][-1]
    options.factor = 2.0
    assert torch.equal(step(*batch).losses, before)  # as documented


def test_tensors_from_outside_are_read_anew() -> None:
    model, weights = nn.Linear(6, 3), torch.ones(3)
    step = gramjd.compile(
        lambda x, y: cross_entropy(model(x), y, weight=weights, reduction="none"), model, mode="graph"
    )
    batch = batches(1)[0]
    before = [step(*batch).losses for _ in range(3)][-1]
    weights.mul_(2)
    torch.testing.assert_close(step(*batch).losses, 2 * before)
    weights = torch.full((3,), 3.0)
    torch.testing.assert_close(step(*batch).losses, 3 * before)


def test_a_rate_of_the_loss_that_always_changes_is_named() -> None:
    model = nn.Linear(6, 3)
    step = gramjd.compile(lambda x, y: cross_entropy(model(x) * model.scale, y, reduction="none"), model, mode="graph")

    def anneal() -> None:
        for n, batch in enumerate(batches(20)):
            model.scale = 1 + n / 10  # type: ignore[assignment]
            step(*batch)

    with pytest.warns(FallbackWarning, match="other circumstances at every step: `scale` of Linear"):
        anneal()
    assert step.graphs == 0


def test_an_attribute_that_counts_is_named() -> None:
    model = nn.Linear(6, 3)
    model.calls = 0  # type: ignore[assignment]

    def losses(x: Tensor, y: Tensor) -> Tensor:
        model.calls += 1  # type: ignore[operator]
        return cross_entropy(model(x), y, reduction="none")

    step = gramjd.compile(losses, model, mode="graph")
    with pytest.warns(FallbackWarning, match="sets `calls` of Linear"):
        run(step, batches(3))
    assert step.graphs == 0


class Remembers(nn.Module):
    """Adds what it computed last to what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.last = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x) + self.last
        self.last = out.detach().mean(0)
        return out


@EAGER
def test_an_attribute_that_the_forward_pass_sets_is_never_frozen() -> None:
    assert_same_training(Remembers(), cross, batches(6), graphs=0)


# -- what cannot be traced -------------------------------------------------------------------------------------------


def test_an_index_from_the_batch_is_never_frozen() -> None:
    def losses_of(model: nn.Module) -> Callable[..., Tensor]:
        return lambda x, index: model(x)[index].square().sum(1)

    generator = torch.Generator().manual_seed(0)
    data = [(x, torch.randint(7, (5,), generator=generator)) for x, _ in batches()]
    with pytest.warns(FallbackWarning, match=r"values of a tensor.*IndexBackward0"):
        assert_same_training(network(), losses_of, data, graphs=0)


class Permuted(nn.Module):
    """Reads its features in an order that a buffer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, self.order] * torch.arange(5).flip(0)


def test_an_index_in_a_buffer_decides_until_it_is_written_to() -> None:
    def between(n: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if n == 4:
            model.order.copy_(torch.tensor([0, 1, 1, 3, 2]))  # type: ignore[union-attr, operator]

    def losses_of(model: nn.Module) -> Callable[..., Tensor]:
        return lambda x, y: model(x).square().flatten()  # each element is a loss: owners follow the index

    assert_same_training(Permuted(), losses_of, batches(8, m=3), between=between)


def test_a_parameter_that_is_not_of_the_model() -> None:
    model, extra = network(), nn.Parameter(torch.ones(()))
    step = gramjd.compile(lambda x, y: cross_entropy(model(x) * extra, y, reduction="none"), model, mode="graph")
    with pytest.warns(FallbackWarning, match="not a parameter of the model"):
        run(step, batches(3))
    assert extra.grad is not None


def test_hooks_on_parameters_are_called() -> None:
    model, seen = network(), []
    model[0].weight.register_hook(lambda g: seen.append(1))  # type: ignore[union-attr]
    step = gramjd.compile(cross(model), model, mode="graph")
    with pytest.warns(FallbackWarning, match="hook"):
        run(step, batches(3))
    assert len(seen) >= 3


@EAGER
@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
def test_a_shape_that_depends_on_values() -> None:
    def losses_of(model: nn.Module) -> Callable[..., Tensor]:
        return lambda x, y: model(x)[x[:, 0] > 0].square().sum(1)

    assert_same_training(network(), losses_of, batches(), graphs=0)


@EAGER
def test_an_aggregator_of_columns() -> None:
    model = network()
    step = gramjd.compile(cross(model), model, aggregator=gramjd.TrimmedMean(1), mode="graph")
    for batch in batches(3):
        assert step(*batch).weights is None
    assert step.graphs == 0
    assert model[0].weight.grad is not None  # type: ignore[union-attr]


# -- trust ------------------------------------------------------------------------------------------------------------


def test_a_step_that_differs_is_an_error_and_changes_nothing() -> None:
    model, calls = network(), []

    def losses(x: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return cross_entropy(model(x), y, reduction="none") * len(calls)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step = gramjd.compile(losses, model, optimizer, mode="graph")
    data = batches(2)
    step(*data[0])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    with pytest.raises(CompileError, match=r"losses\[0\].*differs between its calls"):
        step(*data[1])
    after = model.state_dict(), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_losses_that_are_not_finite_change_nothing() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step = gramjd.compile(cross(model), model, optimizer, mode="graph")
    for batch in batches(3):
        step(*batch)
    before = copy.deepcopy(model.state_dict())
    x, y = batches(1)[0]
    with pytest.raises(LossError, match="NaN or infinite"):
        step(x * torch.nan, y)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_invariant_is_looked_at_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from gramjd.compiled import check

    seen = []
    real = check.invariant
    monkeypatch.setattr(check, "invariant", lambda *args: seen.append(1) or real(*args))
    assert_same_training(network(), cross, batches(8), check_every=2)
    assert len(seen) == 3  # of seven compiled steps, the first of which is checked whole


def test_a_wrong_update_is_found() -> None:
    from gramjd.compiled import check

    J = torch.randn(3, 5)
    w = torch.rand(3)
    squared = (J.T @ w).square().sum()
    check.invariant(w, J @ J.T, squared, 1e-5, str)
    with pytest.raises(CompileError, match="squared norm"):
        check.invariant(w, J @ J.T, 1.1 * squared, 1e-3, str)


def test_random_numbers_are_those_of_an_eager_step() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    assert_same_training(model, cross, batches(6))


def test_stateful_aggregators_take_one_step_per_step() -> None:
    class Counts:
        calls = 0

        def __call__(self, G: Tensor) -> Tensor:
            self.calls += 1
            return torch.full_like(G[0], 1 / len(G))

    model, aggregator = network(), Counts()
    step = gramjd.compile(cross(model), model, aggregator=aggregator, mode="graph")
    for batch in batches(5):
        step(*batch)
    assert aggregator.calls == 5


def test_a_monitor_sees_every_step() -> None:
    from gramjd.profiling import GramMonitor

    model, monitor = network(), GramMonitor()
    step = gramjd.compile(cross(model), model, torch.optim.SGD(model.parameters(), lr=0.1), mode="graph")
    for batch in batches(5):
        monitor.update(step(*batch))
    assert len(monitor.steps) == 5
    assert monitor.latest()["worsened_losses"] == 0


def test_task_losses_with_heads_of_their_own() -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(6, 4)
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            hidden = self.trunk(x).tanh()
            return [head(hidden).square().mean() for head in self.heads]

    torch.manual_seed(0)
    model = Tasks()
    other = copy.deepcopy(model)
    step = gramjd.compile(model, model, tasks=True, shared=model.trunk, mode="graph")
    for x, _ in batches(4):
        result = step(x)
        expected = gramjd.mtl_backward(other(x), shared=other.trunk)
        torch.testing.assert_close(result.gramian, expected.gramian)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    assert step.graphs == 1
    assert isinstance(result.losses, list)
    assert len(result.losses) == 3


WRONG = {
    "mode": ({"mode": "fast"}, "mode is 'fast'; expected one of"),
    "update": ({"update": "twice"}, "update is 'twice'"),
    "optimizer": ({"optimizer": 0.1}, "optimizer is a float"),
    "model": ({"model": [1]}, "model is a list"),
    "losses_fn": ({"losses_fn": torch.ones(3)}, "losses_fn is a Tensor"),
    "max_graphs": ({"max_graphs": 0}, "max_graphs must be an int, 1 or more; got 0"),
    "check_every": ({"check_every": True}, "check_every must be an int, 1 or more; got True"),
    "shared": ({"shared": nn.Linear(1, 1)}, "tasks is False"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        gramjd.compile(**{"losses_fn": lambda x: x, "model": network(), **given})
