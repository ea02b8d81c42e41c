"""One loss per group, and groups of unequal size: who gains by an update that makes no group worse?"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd

SHARES = torch.tensor([0.85, 0.12, 0.03])
TURN = torch.tensor([0.0, 0.9, 1.8])  # of the line between the two classes, by group
# From the Gramian and the number of samples of each group to weights. Those that are used sum to one: equal steps.
WAYS = {
    "all samples alike": lambda G, count: count,
    "all groups alike": lambda G, count: gramjd.Mean()(G),
    "no group worse": lambda G, count: gramjd.UPGrad()(G),
}


def people(n: int, shares: Tensor = SHARES) -> tuple[Tensor, Tensor, Tensor]:
    """Features [n, 5], labels, groups: in each group the same features mean something else, and it is one of them."""
    group = torch.multinomial(shares, n, replacement=True)
    points = torch.randn(n, 2)
    label = (points[:, 0] * TURN[group].cos() + points[:, 1] * TURN[group].sin() > 0).long()
    return torch.cat([points, nn.functional.one_hot(group, 3)], dim=1), label, group


def train(way: str, steps: int, seed: int) -> tuple[Tensor, float]:
    """The loss of each group on fresh data; the share of (step, group) that an update made worse, to first order."""
    torch.manual_seed(seed)
    model, worsened, groups = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2)), 0, 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(steps + 1):
        features, label, group = people(128) if step < steps else people(6000, torch.ones(3))
        count = torch.bincount(group, minlength=3).float()
        per_sample = cross_entropy(model(features), label, reduction="none")
        losses = (torch.zeros(3).index_add(0, group, per_sample) / count)[count > 0]
        if step < steps:
            G = gramjd.gramian(losses)
            w = WAYS[way](G, count[count > 0])
            worsened, groups = worsened + int((G @ w < -1e-4 * w.sum() * G.diagonal()).sum()), groups + len(losses)
            optimizer.zero_grad()
            losses.backward(w / w.sum())
            optimizer.step()
    return losses.detach(), worsened / groups


def main(steps: int = 300) -> dict[str, tuple[float, float, float]]:
    """Per way of training, over three seeds: the worst group's loss, the mean over people, the share made worse."""
    found = {}
    for way in WAYS:
        losses, worsened = zip(*(train(way, steps, seed) for seed in range(3)), strict=True)
        ends = torch.stack(losses)
        found[way] = (ends.amax(1).mean().item(), (ends @ SHARES).mean().item(), sum(worsened) / 3)
        print("{}: loss of the worst group {:.2f}, per person {:.2f}; {:.0%} made worse".format(way, *found[way]))
    return found


if __name__ == "__main__":
    main()
