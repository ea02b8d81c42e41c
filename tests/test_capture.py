"""Steps that ask the device nothing, so that they can be recorded."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gramjd
from gramjd import backward
from gramjd import losses as checks
from gramjd.compiled.capture import check_like
from gramjd.engine.cotangent import index_tensor
from gramjd.errors import InputError

ASKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::item"}


class Asked(TorchDispatchMode):
    """Which operations would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in ASKS:
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


MODELS = {
    "mlp": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (8, 6)),
    "cnn": (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)),
        (8, 2, 4, 4),
    ),
    "encoder": (nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 3)), (4, 5, 8)),
}


@pytest.mark.parametrize("update", ["backward", "reuse"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_asks_the_device_nothing(name: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = MODELS[name]
    x = torch.randn(shape)

    def step() -> None:
        losses = model(x).square().flatten(1).mean(1)
        gramjd.gram_backward(losses, gramjd.Mean(), update=update)

    with Asked() as asked:
        step()
    assert asked.names, "the checks for NaN ask, so the test sees who does"
    monkeypatch.setattr(checks, "all_finite", lambda _: True)
    monkeypatch.setattr(backward, "all_finite", lambda _: True)
    with Asked() as asked:
        step()
    assert asked.names == []


def test_an_index_is_uploaded_once() -> None:
    device = torch.device("meta")
    first = index_tensor(np.arange(5), device)
    assert index_tensor(np.arange(5), device) is first
    assert index_tensor(np.arange(6), device) is not first
    assert index_tensor(np.arange(5) > 2, device).dtype == torch.bool


def test_needs_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        gramjd.capture(lambda x: x, torch.ones(2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="input 0 of the step is on cpu"):
        gramjd.capture(lambda x: x, torch.ones(2))


def test_later_inputs_must_be_like_the_first() -> None:
    held = [torch.ones(2, 3)]
    check_like(held, (torch.zeros(2, 3),))
    for given, message in [
        ((), "recorded with 1 inputs"),
        ((torch.ones(3, 2),), r"\(3, 2\).*recorded with \(2, 3\)"),
        ((torch.ones(2, 3).double(),), "float64"),
    ]:
        with pytest.raises(InputError, match=message):
            check_like(held, given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_step_trains_like_a_plain_one() -> None:
    def trained(record: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            losses = model(x).square().sum(1)
            gramjd.gram_backward(losses)
            optimizer.step()
            return losses.detach()

        data = [torch.randn(8, 6).cuda() for _ in range(5)]
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        run = gramjd.capture(step, data[0], warmup=3) if record else step
        for x in ([] if record else [data[0]] * 3) + data:
            run(x)
        return [p.detach().cpu() for p in model.parameters()]

    for plain, recorded in zip(trained(False), trained(True), strict=True):
        torch.testing.assert_close(plain, recorded, rtol=1e-4, atol=1e-5)
