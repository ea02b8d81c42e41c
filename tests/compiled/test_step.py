"""A compiled step makes the steps of a bare loop, under all circumstances in which it runs a graph."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.aggregation import Weighting
from gramjd.errors import FallbackWarning
from tests.compiled.training import OPTIMIZERS, assert_same_training, batches, cross, network, run

EAGER = pytest.mark.filterwarnings("ignore::gramjd.errors.FallbackWarning")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str) -> None:
    assert_same_training(network(), cross, batches(6), OPTIMIZERS[name], tolerance=1e-4)


@pytest.mark.parametrize(
    "aggregator",
    [gramjd.UPGrad(negligible=0.7), gramjd.UPGrad(ridge=1e-3), gramjd.DualProj(), gramjd.MGDA(), gramjd.IMTLG()],
    ids=repr,
)
def test_aggregators(aggregator: Weighting) -> None:
    assert_same_training(network(), cross, batches(), aggregator=aggregator, tolerance=1e-4)


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
