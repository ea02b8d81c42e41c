"""A compiled step makes the steps of a bare loop, under all circumstances in which it runs a graph."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.errors import CompileError, FallbackWarning, InputError, LossError

EAGER = pytest.mark.filterwarnings("ignore::gramjd.errors.FallbackWarning")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count: int = 5, m: int = 7, features: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(m, features, generator=generator), torch.randint(3, (m,), generator=generator))
        for _ in range(count)
    ]


def run(step: Callable, data: list) -> None:
    for batch in data:
        step(*batch)


def cross(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: cross_entropy(model(x), y, reduction="none")


def assert_same_training(
    model: nn.Module,
    losses_of: Callable[[nn.Module], Callable[..., Tensor]],
    data: list,
    make_optimizer: Callable = lambda p: torch.optim.SGD(p, lr=0.1),
    graphs: int = 1,
    tolerance: float = 1e-5,
    between: Callable = lambda n, model, optimizer: None,
    **options: object,
) -> None:
    """Train a model compiled, and its copy in a bare loop; compare parameters, buffers, weights and Gramians."""
    other = copy.deepcopy(model)
    mine, theirs = make_optimizer(model.parameters()), make_optimizer(other.parameters())
    step = gramjd.compile(losses_of(model), model, mine, mode="graph", **options)
    losses_other = losses_of(other)
    for n, batch in enumerate(data):
        between(n, model, mine)
        between(n, other, theirs)
        torch.manual_seed(n)
        result = step(*batch)
        torch.manual_seed(n)
        theirs.zero_grad()
        expected = gramjd.gram_backward(losses_other(*batch), update="reuse")
        theirs.step()
        torch.testing.assert_close(result.gramian, expected.gramian, rtol=tolerance, atol=tolerance)
        for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    assert step.graphs == graphs


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str) -> None:
    assert_same_training(network(), cross, batches(6), OPTIMIZERS[name], tolerance=1e-4)


def test_groups_with_rates_of_their_own_and_a_schedule() -> None:
    def make(parameters: object) -> torch.optim.Optimizer:
        given = list(parameters)  # type: ignore[call-overload]
        return torch.optim.SGD([{"params": given[:2], "lr": 0.2}, {"params": given[2:]}], lr=0.05, momentum=0.5)

    def between(n: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.7

    assert_same_training(network(), cross, batches(), make, between=between)


def test_schedulers_are_content() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step = gramjd.compile(cross(model), model, optimizer, mode="graph")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches(4):
            step(*batch)
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 16)


def test_one_graph_per_shape_and_the_last_batch_stays_eager() -> None:
    data = [*batches(3), *batches(3, m=5), *batches(1, m=2)]
    assert_same_training(network(), cross, data, graphs=2)


def test_no_more_graphs_than_allowed() -> None:
    model = network()
    step = gramjd.compile(cross(model), model, mode="graph", max_graphs=1)
    for batch in batches(3):
        step(*batch)
    with pytest.warns(FallbackWarning, match="max_graphs"):
        run(step, batches(3, m=4))
    assert step.graphs == 1


def test_gradients_are_added_without_an_optimizer() -> None:
    model = network()
    other = copy.deepcopy(model)
    step = gramjd.compile(cross(model), model, mode="graph", update="backward")
    for batch in batches(4):
        step(*batch)
        gramjd.gram_backward(cross(other)(*batch))
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_modes_of_a_module_are_told_apart() -> None:
    def between(n: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train(n % 2 == 0)

    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gramjd.errors.DenseRowsWarning)
        assert_same_training(model, cross, batches(8), between=between, graphs=2)


def test_a_parameter_that_is_frozen_stays() -> None:
    def between(n: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model[0].weight.requires_grad_(n < 3)  # type: ignore[index, union-attr]

    assert_same_training(network(), cross, batches(7), between=between, graphs=2)


def test_loaded_states_are_used() -> None:
    kept: dict[int, tuple] = {}

    def between(n: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if n == 2:
            kept[id(model)] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if n == 5:
            model.load_state_dict(kept[id(model)][0])
            optimizer.load_state_dict(kept[id(model)][1])

    assert_same_training(network(), cross, batches(8), OPTIMIZERS["adam"], between=between, tolerance=1e-4)


def test_a_parameter_that_is_exchanged_makes_another_graph() -> None:
    def between(n: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if n == 4:  # the optimizer goes on with the one that is gone
            model[0].weight = nn.Parameter(model[0].weight.detach() + 1)  # type: ignore[index, union-attr]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        assert_same_training(network(), cross, batches(7), OPTIMIZERS["momentum"], between=between, graphs=0)


def test_a_batch_that_is_written_to() -> None:
    def losses_of(model: nn.Module) -> Callable[..., Tensor]:
        return lambda x, y: cross_entropy(model(x.mul_(2)), y, reduction="none")

    model = network()
    other = copy.deepcopy(model)
    step = gramjd.compile(losses_of(model), model, mode="graph")
    for x, y in batches(4):
        mine, theirs = x.clone(), x.clone()
        result = step(mine, y)
        expected = gramjd.gram_backward(losses_of(other)(theirs, y))
        torch.testing.assert_close(result.gramian, expected.gramian)
        torch.testing.assert_close(mine, theirs)
    assert step.graphs == 1


class Counting(nn.Module):
    """Makes another tensor of its buffer in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return self.layer(x) * self.seen


def test_a_buffer_that_is_replaced() -> None:
    assert_same_training(Counting(), cross, batches(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    data = [(x.to(dtype), y) for x, y in batches()]
    assert_same_training(network().to(dtype), cross, data, tolerance=1e-10 if dtype == torch.float64 else 0.02)


def test_autocast_around_and_inside() -> None:
    model = network()
    step = gramjd.compile(cross(model), model, mode="graph")
    for batch in batches(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = step(*batch)
    assert step.graphs == 1
    eager = gramjd.gramian(cross(model)(*batches(3)[2]))
    assert 1e-6 < float((result.gramian - eager).norm() / eager.norm()) < 0.05
    for batch in batches(2):
        step(*batch)
    assert step.graphs == 2


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
    "max_graphs": ({"max_graphs": 0}, "max_graphs is 0"),
    "check_every": ({"check_every": True}, "check_every is True"),
    "shared": ({"shared": nn.Linear(1, 1)}, "tasks is False"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        gramjd.compile(**{"losses_fn": lambda x: x, "model": network(), **given})
