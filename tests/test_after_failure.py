"""What holds of `.grad` where a step fails, or is not finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd.aggregation import GradDrop, NashMTL
from gramjd.errors import AggregatorError, InputError, LossError

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


class FailsInTheSecondPass(torch.autograd.Function):
    """The identity; its backward fails from the second call on."""

    calls = 0

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        FailsInTheSecondPass.calls += 1
        if FailsInTheSecondPass.calls > 1:
            raise ZeroDivisionError("in the second pass")
        return g


def failing() -> tuple[nn.Module, Tensor]:
    """A network whose last layer gets its gradient before the second pass fails."""
    FailsInTheSecondPass.calls = 0
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return net, net[1](FailsInTheSecondPass.apply(net[0](torch.randn(1, 3)))).square().sum(1)


@pytest.mark.parametrize("update", ["backward", "reuse"])
def test_no_half_written_gradients(update: str) -> None:
    net, losses = failing()
    net[1].weight.register_hook(lambda g: g)  # so that "reuse" makes a second pass
    with pytest.raises(ZeroDivisionError):
        gramjd.gram_backward(losses, update=update)
    assert all(p.grad is None for p in net.parameters())


def test_a_gradient_that_was_there_is_the_only_exception() -> None:
    net, losses = failing()
    net[0].weight.grad, net[1].weight.grad = (torch.ones_like(layer.weight) for layer in (net[0], net[1]))
    with pytest.raises(ZeroDivisionError):
        gramjd.gram_backward(losses)
    assert net[1].bias.grad is None
    assert net[0].bias.grad is None
    assert torch.equal(net[0].weight.grad, torch.ones(4, 3))  # not reached before the failure


def test_heads_are_restored_where_the_trunk_fails() -> None:
    FailsInTheSecondPass.calls = 0
    trunk, heads = nn.Linear(3, 4), [nn.Linear(4, 1) for _ in range(2)]
    hidden = FailsInTheSecondPass.apply(trunk(torch.randn(1, 3)))
    with pytest.raises(ZeroDivisionError):
        gramjd.mtl_backward([head(hidden).square().sum() for head in heads])
    assert all(p.grad is None for layer in (trunk, *heads) for p in layer.parameters())


# -- not finite -------------------------------------------------------------------------------------------------------


def broken_losses(net: nn.Module) -> Tensor:
    return net(torch.randn(4, 3)).square().sum(1) * torch.tensor([1.0, 1.0, float("inf"), 1.0])


def broken_gramian(net: nn.Module) -> Tensor:
    """Finite losses whose gradients are not."""
    return net(torch.randn(4, 3)).mul(0).sqrt().sum(1)


BROKEN: dict[str, Callable[[nn.Module], Tensor]] = {"losses": broken_losses, "gradients": broken_gramian}


@pytest.mark.parametrize("what", list(BROKEN))
@pytest.mark.parametrize("update", ["backward", "reuse"])
@pytest.mark.parametrize("aggregator", [None, NashMTL(), GradDrop(), gramjd.Mean()], ids=repr)
def test_what_is_not_finite_is_passed_on(what: str, update: str, aggregator: object) -> None:
    net = nn.Linear(3, 2)
    step = gramjd.gram_backward(BROKEN[what](net), aggregator, update=update, nonfinite="pass")
    assert not any(p.grad.isfinite().all() for p in net.parameters())
    if step is not None:
        assert step.weights.isnan().all()


@pytest.mark.parametrize(("what", "error"), [("losses", LossError), ("gradients", AggregatorError)])
def test_what_is_not_finite_is_refused_by_default(what: str, error: type[Exception]) -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(error, match="finite"):
        gramjd.gram_backward(BROKEN[what](net))
    assert net.weight.grad is None


def test_a_word_that_is_not_known() -> None:
    with pytest.raises(InputError, match="nonfinite is 'skip'; expected one of 'raise', 'pass'"):
        gramjd.gram_backward(torch.ones(2, requires_grad=True), nonfinite="skip")


@pytest.mark.parametrize("update", ["backward", "reuse"])
def test_a_scaler_skips_the_step_and_goes_on(update: str) -> None:
    """Half precision overflows at the first scales; the parameters move only once it does not."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(6, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    start, moved = net[0].weight.detach().clone(), []
    for _ in range(24):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            losses = net(data).square().sum(1).half()
        before = net[0].weight.detach().clone()
        gramjd.gram_backward(scaler.scale(losses), update=update, nonfinite="pass")
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, net[0].weight))
    assert not moved[0]
    assert moved[-1]
    assert scaler.get_scale() < 2.0**24
    assert net[0].weight.isfinite().all()
    assert not torch.equal(start, net[0].weight)
