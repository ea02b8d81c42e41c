"""Ordinary training that only watches: the Gramian of a batch, now and then, says how much its samples conflict."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd


def conflict(gramian: Tensor) -> dict[str, float]:
    """Numbers for any logger: share of conflicting pairs, mean cosine, and how many gradients the sum is worth."""
    norms = gramian.diagonal().sqrt()
    cosines = gramian / (norms[:, None] * norms)
    pairs = cosines[tuple(torch.triu_indices(len(gramian), len(gramian), offset=1))]
    return {
        "conflicting_pairs": (pairs < 0).float().mean().item(),
        "mean_cosine": pairs.mean().item(),
        "agreement": (gramian.sum().clamp(min=0).sqrt() / norms.sum()).item(),  # 1: all point the same way
    }


def main(steps: int = 200) -> list[dict[str, float]]:
    """Train with plain SGD; returns what was logged."""
    torch.manual_seed(0)
    centres = torch.randn(10, 20)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = []
    for step in range(steps):
        labels = torch.randint(10, (32,))
        losses = cross_entropy(model(centres[labels] + torch.randn(32, 20)), labels, reduction="none")
        if step % 50 == 0:
            if step == 0:
                print(gramjd.explain(losses))
            log.append(conflict(gramjd.gramian(losses)))  # the graph stays usable for the backward pass below
            print(f"step {step:4d}  " + "  ".join(f"{name} {value:.3f}" for name, value in log[-1].items()))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return log


if __name__ == "__main__":
    main()
