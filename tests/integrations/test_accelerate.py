"""The recipe for a loop with accelerate: parameters beside those of a bare loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gramjd

accelerate = pytest.importorskip("accelerate", reason="needs the extra `transformers`")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(5, generator=generator), torch.tensor(k % 3)) for k in range(24)]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_recipe(steps: int, precision: str) -> None:
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=steps)
    model = network()
    loader = torch.utils.data.DataLoader(data(), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x, y in loader:
        with accelerator.accumulate(model):
            losses = F.cross_entropy(model(x), y, reduction="none")
            gramjd.gram_backward(losses / accelerator.gradient_accumulation_steps)
            optimizer.step()
            optimizer.zero_grad()
    expected = network()
    plain = torch.optim.SGD(expected.parameters(), lr=0.5)
    for n, (x, y) in enumerate(torch.utils.data.DataLoader(data(), batch_size=4)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            # accelerate turns what a model returns into float32
            losses = F.cross_entropy(expected(x).float(), y, reduction="none")
        gramjd.gram_backward(losses / steps)
        if (n + 1) % steps == 0:
            plain.step()
            plain.zero_grad()
    found = [p.detach() for p in accelerator.unwrap_model(model).parameters()]
    torch.testing.assert_close(found, [p.detach() for p in expected.parameters()], rtol=1e-5, atol=1e-6)
    start = [p.detach() for p in network().parameters()]
    gap = max(float((p - q).abs().max()) for p, q in zip(found, start, strict=True))
    assert gap > 0.1
