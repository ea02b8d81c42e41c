"""Loops around a step: what reads `.grad` or calls a step its own way, beside gradients taken one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import gramjd
from tests.small import F64, mlp

UPDATES = ["backward", "reuse"]
DATA = [torch.randn(4, 5, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in range(4)]
Descend = Callable[[nn.Module, Tensor], None]


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp()


def written_down(model: nn.Module, losses: Tensor) -> None:
    """`.grad += J^T w` by a backward pass per loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses.unbind()]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    update = gramjd.UPGrad()(J @ J.T) @ J
    for p, part in zip(parameters, update.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view(p.shape).clone() if p.grad is None else p.grad + part.view(p.shape)


def clipped(model: nn.Module, descend: Descend) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in DATA:
        optimizer.zero_grad()
        descend(model, losses_of(model, x))
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def several_optimizers(model: nn.Module, descend: Descend) -> None:
    optimizers = [
        torch.optim.AdamW(model[0].parameters(), lr=1e-2),
        torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9),
    ]
    for x in DATA:
        for optimizer in optimizers:
            optimizer.zero_grad()
        descend(model, losses_of(model, x))
        for optimizer in optimizers:
            optimizer.step()


def closures(model: nn.Module, descend: Descend) -> None:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    for x in DATA:

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            losses = losses_of(model, x)
            descend(model, losses)
            return losses.detach().mean()

        optimizer.step(closure)


def averaged(model: nn.Module, descend: Descend) -> None:
    """The parameters become those of the average."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for x in DATA:
        optimizer.zero_grad()
        descend(model, losses_of(model, x))
        optimizer.step()
        mean.update_parameters(model)
    model.load_state_dict(mean.module.state_dict())


def zeroed_in_place(model: nn.Module, descend: Descend) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    places = None
    for x in DATA:
        optimizer.zero_grad(set_to_none=False)
        descend(model, losses_of(model, x))
        if places is not None and descend is not by_hand:
            assert places == [p.grad.data_ptr() for p in model.parameters()]
        places = [p.grad.data_ptr() for p in model.parameters()]
        optimizer.step()


def separate_steps_added(model: nn.Module, descend: Descend) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for first in (0, 2):
        optimizer.zero_grad()
        for x in DATA[first : first + 2]:
            descend(model, losses_of(model, x) / 2)
        optimizer.step()


def frozen_and_thawed(model: nn.Module, descend: Descend) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for n, x in enumerate(DATA):
        model[0].requires_grad_(n % 2 == 0)
        optimizer.zero_grad()
        descend(model, losses_of(model, x))
        optimizer.step()


def scheduled(model: nn.Module, descend: Descend) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=len(DATA))
    for x in DATA:
        optimizer.zero_grad()
        descend(model, losses_of(model, x))
        optimizer.step()
        scheduler.step()


def in_backward(model: nn.Module, descend: Descend) -> None:
    """An optimizer per parameter that steps as soon as its gradient is there."""
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    if descend is by_hand:
        for x in DATA:
            descend(model, losses_of(model, x))
            for p in model.parameters():
                step(p)
        return
    handles = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
    for x in DATA:
        descend(model, losses_of(model, x))
    for handle in handles:
        handle.remove()


LOOPS = [
    *(clipped, several_optimizers, closures, averaged, zeroed_in_place, separate_steps_added, frozen_and_thawed),
    *(scheduled, in_backward),
]
by_hand: Descend = written_down


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def moved(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    return max(float((p - q).abs().max()) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_parameters_after_the_loop(loop: Callable[[nn.Module, Descend], None], update: str) -> None:
    model, expected = network(), network()
    start = copy.deepcopy(parameters(model))
    loop(model, lambda _, losses: gramjd.gram_backward(losses, update=update))
    loop(expected, by_hand)
    torch.testing.assert_close(parameters(model), parameters(expected), rtol=1e-8, atol=1e-10)
    assert moved(parameters(model), start) > 1e-3


def test_one_gramian_over_micro_batches_in_a_loop() -> None:
    """Beside the loop that hands over all losses of two batches at once."""
    found = []
    for together in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        accumulator = gramjd.Accumulator()
        for first in (0, 2):
            optimizer.zero_grad()
            if together:
                gramjd.gram_backward([losses_of(model, x) for x in DATA[first : first + 2]])
            else:
                for x in DATA[first : first + 2]:
                    accumulator.add(losses_of(model, x))
                accumulator.step()
            optimizer.step()
        found.append(parameters(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-10)
    separate = network()
    separate_steps_added(separate, by_hand)
    assert moved(found[0], parameters(separate)) > 1e-3  # which is something else
