"""A whole training step as one graph: forward pass, Gramian, weights and optimizer, traced once."""

import time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.profiling import GramMonitor


def rings(n: int) -> tuple[Tensor, Tensor]:
    """n points on three rings, with a little noise, and the ring of each."""
    ring = torch.randint(3, (n,))
    angle = 2 * torch.pi * torch.rand(n)
    points = (1 + ring)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.1 * torch.randn(n, 2), ring


def main(steps: int = 600) -> float:
    """Train; returns the accuracy on fresh points."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    monitor = GramMonitor()

    def losses(points: Tensor, ring: Tensor) -> Tensor:
        return cross_entropy(model(points), ring, reduction="none")

    # "graph" needs no compiler; "default" compiles by Inductor, which pays in longer trainings.
    step = gramjd.compile(losses, model, optimizer, gramjd.UPGrad(), mode="graph")
    start = time.perf_counter()
    for n in range(steps):
        result = step(*rings(32))
        schedule.step()
        monitor.update(result)
        if n % 100 == 0:
            print(f"step {n:4d}  mean loss {result.losses.mean():.3f}  worst {result.losses.max():.3f}")
    print(f"{steps} steps in {time.perf_counter() - start:.1f} s, {step.graphs} graph")
    print(f"losses that the last step made worse: {monitor.latest()['worsened_losses']:.0%}")
    points, ring = rings(1000)
    return (model(points).argmax(1) == ring).float().mean().item()


if __name__ == "__main__":
    print(f"accuracy on fresh points {main():.3f}")
