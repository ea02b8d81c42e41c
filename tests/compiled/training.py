"""Training a model with compiled steps beside a bare loop, and what the tests of it share."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd


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
        expected = gramjd.gram_backward(losses_other(*batch), options.get("aggregator"), update="reuse")
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
