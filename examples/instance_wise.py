"""One objective per sample: two interleaved spirals, every step one that no sample of its batch objects to."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd


def spirals(n: int) -> tuple[Tensor, Tensor]:
    """n points on two arms, with a little noise, and the arm of each."""
    arm = torch.arange(n) % 2
    angle = 1 + 3 * torch.rand(n)
    turn = angle + torch.pi * arm
    points = angle[:, None] / 4 * torch.stack([turn.cos(), turn.sin()], dim=1)
    return points + 0.02 * torch.randn(n, 2), arm


def main(steps: int = 400) -> float:
    """Train; returns the accuracy on fresh points."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        points, arm = spirals(32)
        losses = cross_entropy(model(points), arm, reduction="none")  # [32], one per sample
        optimizer.zero_grad()
        gramjd.gram_backward(losses, gramjd.UPGrad())
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step:4d}  mean loss {losses.mean():.3f}  worst {losses.max():.3f}")
    points, arm = spirals(1000)
    accuracy = (model(points).argmax(1) == arm).float().mean().item()
    print(f"accuracy on fresh points {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
