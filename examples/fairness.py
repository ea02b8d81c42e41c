"""One loss per group, and groups of unequal size: who gains by an update that makes no group worse?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd

SHARES = torch.tensor([0.85, 0.12, 0.03])
TURN = torch.tensor([0.0, 0.9, 1.8])  # the line between the two classes, turned from group to group


def people(n: int, shares: Tensor = SHARES) -> tuple[Tensor, Tensor, Tensor]:
    """Features [n, 5], labels, groups: the same features mean something else in each group, which is among them."""
    group = torch.multinomial(shares, n, replacement=True)
    points = torch.randn(n, 2)
    label = (points[:, 0] * TURN[group].cos() + points[:, 1] * TURN[group].sin() > 0).long()
    return torch.cat([points, nn.functional.one_hot(group, 3)], dim=1), label, group


def by_group(per_sample: Tensor, group: Tensor) -> Tensor:
    """The mean loss of each group that is there."""
    count = torch.bincount(group, minlength=3)
    return torch.zeros(3).index_add(0, group, per_sample)[count > 0] / count[count > 0]


def train(weigh: Callable[[Tensor, Tensor], Tensor], steps: int, seed: int, rate: float = 0.3) -> tuple[Tensor, float]:
    """The loss of each group on fresh data, and the share of (step, group) that an update made worse, to first order."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    worsened = groups = 0
    for _ in range(steps):
        features, label, group = people(128)
        losses = by_group(cross_entropy(model(features), label, reduction="none"), group)
        G = gramjd.gramian(losses)
        w = weigh(G, torch.bincount(group, minlength=3)[group.unique()] / len(group))
        worsened, groups = worsened + int((G @ w < -1e-4 * G.diagonal()).sum()), groups + len(losses)
        optimizer.zero_grad()
        losses.backward(w)
        optimizer.step()
    features, label, group = people(6000, torch.ones(3))
    return by_group(cross_entropy(model(features), label, reduction="none"), group).detach(), worsened / groups


def main(steps: int = 300) -> dict[str, tuple[float, float, float]]:
    """Per way of training, over three seeds: the worst group's loss, the mean over people, the share made worse."""
    aggregator = gramjd.UPGrad()
    ways = {"people": lambda G, share: share, "groups": lambda G, share: gramjd.Mean()(G), "upgrad": lambda G, share: aggregator(G)}
    found = {}
    for name, weigh in ways.items():
        runs = [train(weigh, steps, seed) for seed in range(3)]
        losses, worse = torch.stack([run[0] for run in runs]), sum(run[1] for run in runs) / 3
        found[name] = (losses.amax(1).mean().item(), (losses @ SHARES).mean().item(), worse)
    for name, numbers in found.items():
        print(name, "  ".join(f"{x:.3f}" for x in numbers))
    return found


if __name__ == "__main__":
    main()
