"""How large a batch is worth its price: gradient-noise scale and effective rank from Gramians of batches of 32."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.profiling import GramMonitor


def noise_and_signal(G: Tensor) -> Tensor:
    """The trace of the covariance of a sample's gradient, and the squared length of the mean one; both without bias."""
    signal = (G.sum() - G.trace()) / (G.numel() - len(G))  # the mean product of two samples' gradients
    return torch.stack([G.diagonal().mean() - signal, signal])


def entropy_rank(G: Tensor) -> float:
    """The exponential of the entropy of the singular values of J, scaled to sum 1."""
    share = torch.linalg.eigvalsh(G.double()).clamp(min=0).sqrt()
    return torch.special.entr(share / share.sum()).sum().exp().item()


def separate(losses: Callable[[int], Tensor], model: nn.Module) -> float:
    """The noise scale by its definition: 2000 samples, and a backward pass for each."""
    rows = [torch.autograd.grad(losses(1).sum(), [*model.parameters()]) for _ in range(2000)]
    J = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    noise, mean = J.var(dim=0).sum().item(), J.mean(0)
    return noise / ((mean @ mean).item() - noise / len(J))


def main(steps: int = 25) -> list[dict[str, float]]:
    """Watch plain training at its start and its end; returns both estimates and both ranks at each."""
    torch.manual_seed(0)
    centres, model = torch.randn(10, 20), nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer, monitor, found = torch.optim.SGD(model.parameters(), lr=0.3), GramMonitor(), []

    def losses(n: int) -> Tensor:
        labels = torch.randint(10, (n,))
        return cross_entropy(model(centres[labels] + torch.randn(n, 20)), labels, reduction="none")

    for step in range(steps + 1):
        if step in (0, steps):
            Gs = [gramjd.gramian(losses(32)) for _ in range(40)]
            noise, signal = torch.stack([noise_and_signal(G) for G in Gs]).mean(0)  # means first, then the quotient
            monitor.update(gramjd.GramStep(gramjd.Mean()(Gs[0]), Gs[0]))
            scales = {"noise_scale": (noise / signal).item(), "separate": separate(losses, model)}
            found.append(scales | {"entropy_rank": entropy_rank(Gs[0]), "rank": monitor.latest()["effective_rank"]})
            print(f"step {step}: " + ", ".join(f"{name} {number:.1f}" for name, number in found[-1].items()))
        optimizer.zero_grad()
        losses(32).mean().backward()
        optimizer.step()
    print(f"A batch is worth {found[0]['noise_scale']:.0f} samples at first, {found[1]['noise_scale']:.0f} at the end.")
    return found


if __name__ == "__main__":
    main()
