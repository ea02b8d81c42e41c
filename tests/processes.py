"""Scenes for `test_processes.py`: each is run by every process of a group, and fails by raising."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gramjd
from gramjd.errors import DenseRowsWarning, FallbackWarning, InputError, RanksWarning
from tests.ranks import end


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(rank: int, step: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * rank + step)).double()


def losses_of(model: Callable[[Tensor], Tensor], data: Tensor) -> Tensor:
    return model(data).square().sum(1)


def reference(steps: int, rate: float) -> list[Tensor]:
    """Parameters after steps with the mean over processes of each one's own update."""
    net = network()
    for step in range(steps):
        updates = []
        for rank in range(dist.get_world_size()):
            L = losses_of(net, batch(rank, step))
            w = gramjd.UPGrad()(gramjd.gramian(L))
            updates.append(torch.autograd.grad(L, list(net.parameters()), w))
        with torch.no_grad():
            for p, *given in zip(net.parameters(), *updates, strict=True):
                p -= rate * torch.stack(given).mean(0)
    return [p.detach() for p in net.parameters()]


def in_parallel(update: str, **options: bool) -> None:
    """Parameters are alike on all processes, and those of the mean of the updates; no rows are dense."""
    net = network()
    model = DistributedDataParallel(net, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4):
            net.zero_grad()
            gramjd.gram_backward(losses_of(model, batch(dist.get_rank(), step)), update=update)
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.1 * p.grad
    kinds = {w.category for w in caught}
    assert DenseRowsWarning not in kinds, [str(w.message) for w in caught]
    assert (FallbackWarning in kinds) == (update == "reuse")
    assert RanksWarning in kinds
    torch.testing.assert_close([p.detach() for p in net.parameters()], reference(4, 0.1))


def in_parallel_for_inputs() -> None:
    """The same where inputs are named, as integrations do."""
    net = network()
    model = DistributedDataParallel(net)
    for step in range(4):
        net.zero_grad()
        gramjd.gram_backward(losses_of(model, batch(dist.get_rank(), step)), inputs=net)
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
    torch.testing.assert_close([p.detach() for p in net.parameters()], reference(4, 0.1))


def accumulated() -> None:
    """One Gramian over the micro-batches of each process; the mean of the processes' updates."""
    net = network()
    model = DistributedDataParallel(net)
    accumulator = gramjd.Accumulator()
    with pytest.raises(InputError, match="several processes"):
        accumulator.add(losses_of(model, batch(dist.get_rank(), 0)))
    for step in range(2):
        accumulator.add(losses_of, model, batch(dist.get_rank(), step))
    accumulator.step()
    found = [p.grad.clone() for p in net.parameters()]
    updates = []
    for rank in range(dist.get_world_size()):
        L = torch.cat([losses_of(net, batch(rank, step)) for step in range(2)])
        updates.append(torch.autograd.grad(L, list(net.parameters()), gramjd.UPGrad()(gramjd.gramian(L))))
    torch.testing.assert_close(found, [torch.stack(given).mean(0) for given in zip(*updates, strict=True)])


SCENES = {
    "data_parallel": lambda: in_parallel("backward"),
    "data_parallel_reuse": lambda: in_parallel("reuse"),
    "data_parallel_static_graph": lambda: in_parallel("backward", static_graph=True),
    "data_parallel_static_graph_reuse": lambda: in_parallel("reuse", static_graph=True),
    "data_parallel_unused": lambda: in_parallel("backward", find_unused_parameters=True),
    "data_parallel_inputs": in_parallel_for_inputs,
    "data_parallel_accumulated": accumulated,
}

if __name__ == "__main__":
    dist.init_process_group("gloo")
    try:
        SCENES[sys.argv[1]]()
    finally:
        dist.destroy_process_group()
    end()
