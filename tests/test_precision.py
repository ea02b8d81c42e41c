"""Mixed and pure low precision, scalers and scales, beside gradients taken one by one in the same precision.

Tolerances: both sides pass the same forward graph, so that they differ by how cotangents are rounded on the way back:
at most one rounding `eps / 2` per operation and side, and G is a product of two. With d operations from the loss to the
first parameter that is `2 * 2 * d * eps / 2` for G, relative to its norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gramjd
from gramjd.errors import InputError
from tests.oracle import relative_error
from tests.small import F64, clear, mlp

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)).mean(1)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))


def convolutional(train: bool) -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers).train(train)


# A model, the shape of its input without the batch, and operations from loss to the first parameter.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: mlp(8, 16, 3, dtype=F32), (8,), 4),
    "layer norm": (normed, (8,), 5),
    "convolution": (lambda: convolutional(False), (2, 6, 6), 6),
    "batch norm": (lambda: convolutional(True), (2, 6, 6), 6),
    "attention": (Attention, (5, 8), 9),
}


def made(name: str, dtype: torch.dtype = F32) -> tuple[nn.Module, Tensor, Tensor, int]:
    make, shape, depth = MODELS[name]
    model = make().to(dtype)
    return model, torch.randn(6, *shape).to(dtype), torch.arange(6) % 3, depth


def one_by_one(losses: Tensor, model: nn.Module) -> Tensor:
    """J [m, n] by a backward pass per loss, in float64 from the gradients on."""
    rows = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses.unbind()]
    return torch.stack([torch.cat([g.double().reshape(-1) for g in row]) for row in rows])


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().reshape(-1) for p in model.parameters()])


def limit(dtype: torch.dtype, depth: int) -> float:
    return 2 * depth * torch.finfo(dtype).eps


def check(losses: Tensor, model: nn.Module, dtype: torch.dtype, depth: int, update: str) -> None:
    """G and gradients of a step are those of the losses one by one, as far as `dtype` rounds."""
    J = one_by_one(losses, model)
    step = gramjd.gram_backward(losses, gramjd.MGDA(), update=update)
    assert step.gramian.dtype == (F64 if dtype == F64 else F32)
    assert step.weights.dtype == step.gramian.dtype
    assert relative_error(step.gramian, J @ J.T) <= limit(dtype, depth)
    gap = gradient(model) - step.weights.double() @ J
    size = (step.weights.double().abs()[:, None] * J.norm(dim=1, keepdim=True)).sum()
    assert float(gap.norm() / size) <= limit(dtype, depth)


@pytest.mark.parametrize("inside", [True, False], ids=["call inside", "call outside"])
@pytest.mark.parametrize("update", ["backward", "reuse"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_autocast(name: str, dtype: torch.dtype, update: str, inside: bool) -> None:
    model, x, y, depth = made(name)
    with torch.autocast("cpu", dtype=dtype):
        losses = F.cross_entropy(model(x), y, reduction="none")
        if inside:
            check(losses, model, dtype, depth, update)
    if not inside:
        check(losses, model, dtype, depth, update)
    assert {p.grad.dtype for p in model.parameters()} == {F32}


@pytest.mark.parametrize("update", ["backward", "reuse"])
@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_one_precision(name: str, dtype: torch.dtype, update: str) -> None:
    model, x, y, depth = made(name, dtype)
    losses = F.cross_entropy(model(x), y, reduction="none")
    check(losses, model, dtype, depth, update)
    assert {p.grad.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_no_further_from_float64_than_gradients_one_by_one(dtype: torch.dtype) -> None:
    model, x, y, _ = made("mlp")
    wide = mlp(8, 16, 3)
    wide.load_state_dict(model.state_dict())
    J = one_by_one(F.cross_entropy(wide(x.double()), y, reduction="none"), wide)
    with torch.autocast("cpu", dtype=dtype):
        losses = F.cross_entropy(model(x), y, reduction="none")
    mine = relative_error(gramjd.gramian(losses), J @ J.T)
    naive = one_by_one(losses, model)
    assert mine <= 1.5 * relative_error(naive @ naive.T, J @ J.T)


# -- scalers ----------------------------------------------------------------------------------------------------------


@contextmanager
def half() -> Iterator[None]:
    with torch.autocast("cpu", dtype=F16):
        yield


def scaled_step(
    scale: float, descend: Callable[[Tensor, torch.amp.GradScaler], object]
) -> tuple[Tensor, torch.amp.GradScaler, nn.Module]:
    """One step of SGD with a scaler: how far the parameters moved."""
    torch.manual_seed(0)
    model, x, y, _ = made("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([p.detach().clone().reshape(-1) for p in model.parameters()])
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    with half():
        losses = F.cross_entropy(model(x), y, reduction="none")
    descend(losses, scaler)
    scaler.step(optimizer)
    scaler.update()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before, scaler, model


NAMED = {
    "UPGrad": gramjd.UPGrad,
    "MGDA": gramjd.MGDA,
    "NashMTL": gramjd.NashMTL,
    "FairGrad": lambda: gramjd.FairGrad(1.0),
    "GaussNewton": lambda: gramjd.GaussNewton(damping=0.1),
    "MoDo": lambda: gramjd.MoDo(0.01),
    "ExcessMTL": gramjd.ExcessMTL,
    "GradDrop": lambda: gramjd.GradDrop(seed=1),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_scale_that_is_told_changes_no_step(name: str) -> None:
    """Of powers of two, that is up to what float16 loses below its smallest number."""

    def descend(losses: Tensor, scaler: torch.amp.GradScaler) -> None:
        gramjd.gram_backward(scaler.scale(losses), NAMED[name](), nonfinite="pass", scale=scaler.get_scale())

    one, other = scaled_step(2.0**4, descend)[0], scaled_step(2.0**8, descend)[0]
    assert relative_error(other, one) < 2e-2


@pytest.mark.parametrize("name", NAMED)
def test_only_scale_free_aggregators_do_without(name: str) -> None:
    def descend(losses: Tensor, scaler: torch.amp.GradScaler) -> None:
        gramjd.gram_backward(scaler.scale(losses), NAMED[name](), nonfinite="pass")

    one, other = scaled_step(2.0**4, descend)[0], scaled_step(2.0**8, descend)[0]
    free = NAMED[name]().scale_free
    if name == "ExcessMTL":  # its first call returns 1/m whatever comes
        return
    assert (relative_error(other, one) < 2e-2) == free


def test_the_step_is_told_without_the_scale() -> None:
    model, x, y, _ = made("mlp", F64)
    losses = F.cross_entropy(model(x), y, reduction="none")
    plain = gramjd.gram_backward(losses, gramjd.NashMTL(), retain_graph=True)
    first = gradient(model)
    clear(model.parameters())
    scaled = gramjd.gram_backward(losses * 8, gramjd.NashMTL(), scale=8)
    torch.testing.assert_close(scaled.gramian, plain.gramian)
    torch.testing.assert_close(scaled.weights, plain.weights)
    torch.testing.assert_close(gradient(model), 8 * first)


def test_losses_are_handed_on_without_the_scale() -> None:
    seen: list[Tensor] = []

    class Watches:
        takes_losses = True

        def __call__(self, G: Tensor, losses: Tensor) -> Tensor:
            seen.append(losses)
            return torch.ones_like(losses)

    w = torch.tensor([1.0, 2.0], requires_grad=True)
    gramjd.gram_backward(w**2 * 4, Watches(), scale=4)
    assert seen[0].tolist() == [1, 4]


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "2", True])
def test_a_scale_is_a_number_above_zero(scale: object) -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="scale must be a number that is finite and above 0"):
        gramjd.gram_backward(w**2, scale=scale)
    assert w.grad is None


@pytest.mark.parametrize("way", ["gram_backward", "reuse", "GradDrop", "accumulator", "accumulator, nothing kept"])
def test_an_overflow_skips_the_step(way: str) -> None:
    def descend(losses: Tensor, scaler: torch.amp.GradScaler) -> None:
        L = scaler.scale(losses)
        if way.startswith("accumulator"):
            accumulator = gramjd.Accumulator(nonfinite="pass", keep="nothing" if "nothing" in way else "device")
            accumulator.add(lambda: L) if "nothing" in way else accumulator.add(L)
            accumulator.step(scale=scaler.get_scale())
        elif way == "GradDrop":
            gramjd.gram_backward(L, gramjd.GradDrop(), nonfinite="pass")
        else:
            gramjd.gram_backward(L, nonfinite="pass", update="reuse" if way == "reuse" else "backward")

    moved, scaler, model = scaled_step(2.0**30, descend)
    assert moved.abs().max() == 0
    assert scaler.get_scale() == 2.0**29
    assert all(not p.grad.isfinite().all() for p in model.parameters())
    moved, scaler, _ = scaled_step(2.0**8, descend)
    assert moved.abs().max() > 0
    assert scaler.get_scale() == 2.0**8


def test_an_infinite_loss_skips_the_step() -> None:
    def descend(losses: Tensor, scaler: torch.amp.GradScaler) -> None:
        bad = losses * torch.tensor([1, float("inf"), 1, 1, 1, 1])
        gramjd.gram_backward(scaler.scale(bad), nonfinite="pass")

    moved, scaler, _ = scaled_step(2.0**8, descend)
    assert moved.abs().max() == 0
    assert scaler.get_scale() == 2.0**7
