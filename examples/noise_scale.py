"""How large a batch is worth its price: gradient-noise scale and effective rank from Gramians of batches of 32."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.profiling import GramMonitor


def noise_and_signal(G: Tensor) -> Tensor:
    """The trace of the covariance of a sample's gradient, and the squared length of the mean one; both without bias."""
    m = len(G)
    signal = (G.sum() - G.trace()) / (m * (m - 1))  # the mean product of two different samples' gradients
    return torch.stack([G.trace() / m - signal, signal])


def entropy_rank(G: Tensor) -> float:
    """The exponential of the entropy of the singular values of J, scaled to sum 1."""
    share = torch.linalg.eigvalsh(G.double()).clamp(min=0).sqrt()
    return torch.special.entr(share / share.sum()).sum().exp().item()


def clusters(centres: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n noisy points around ten centres, and the centre of each."""
    labels = torch.randint(10, (n,))
    return centres[labels] + torch.randn(n, 20), labels


def separate(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The noise scale by its definition: a backward pass for each of many samples."""
    rows = []
    for point, label in zip(*data, strict=True):
        parts = torch.autograd.grad(cross_entropy(model(point), label), list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    J = torch.stack(rows)
    noise = J.var(dim=0).sum()
    return (noise / (J.mean(0).square().sum() - noise / len(J))).item()


def main(steps: int = 200) -> list[dict[str, float]]:
    """Watch plain training at its start and its end; returns both estimates and both ranks at each."""
    torch.manual_seed(0)
    centres, model = torch.randn(10, 20), nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer, monitor, found = torch.optim.SGD(model.parameters(), lr=0.3), GramMonitor(), []
    for step in range(steps + 1):
        if step in (0, steps):
            batches = [
                cross_entropy(model(x), y, reduction="none") for x, y in (clusters(centres, 32) for _ in range(20))
            ]
            Gs = [gramjd.gramian(losses) for losses in batches]
            noise, signal = torch.stack([noise_and_signal(G) for G in Gs]).mean(0)  # of each, before they are divided
            monitor.update(gramjd.GramStep(gramjd.Mean()(Gs[0]), Gs[0]))
            scales = {"noise_scale": (noise / signal).item(), "separate": separate(model, clusters(centres, 2000))}
            found.append(scales | {"entropy_rank": entropy_rank(Gs[0]), "rank": monitor.latest()["effective_rank"]})
            print(f"step {step:4d}  " + "  ".join(f"{name} {number:.1f}" for name, number in found[-1].items()))
        optimizer.zero_grad()
        points, labels = clusters(centres, 32)
        cross_entropy(model(points), labels).backward()
        optimizer.step()
    print(
        f"The batch that is worth its price grew from {found[0]['noise_scale']:.0f} to {found[1]['noise_scale']:.0f} samples."
    )
    return found


if __name__ == "__main__":
    main()
