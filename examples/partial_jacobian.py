"""Partial Jacobian descent: weights from the Gramian of the last layer alone, beside those of the whole model."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd


def update(model: nn.Module, losses: Tensor, part: nn.Module) -> Tensor:
    """What UPGrad would do with the Gramian of a part, as one vector."""
    model.zero_grad()
    gramjd.gram_backward(losses, gramian_inputs=part, retain_graph=True)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def main(steps: int = 200) -> dict[str, float]:
    """Train by the last layer; returns means over the steps, and the accuracy on fresh points."""
    torch.manual_seed(0)
    centres, head = torch.randn(10, 20), nn.Linear(64, 10)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), head)
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        labels = torch.randint(10, (32,))
        losses = cross_entropy(model(centres[labels] + torch.randn(32, 20)), labels, reduction="none")
        whole, G = update(model, losses, model), gramjd.gramian(losses)
        mean = torch.cat(
            [g.flatten() for g in torch.autograd.grad(losses.mean(), [*model.parameters()], retain_graph=True)]
        )
        model.zero_grad()
        step = gramjd.gram_backward(losses, gramian_inputs=head)
        partial = torch.cat([p.grad.flatten() for p in model.parameters()])
        cosines = [torch.cosine_similarity(v, whole, dim=0) for v in (partial, mean)]
        worse = [(G @ w < -1e-4 * G.diagonal()).float().mean() for w in (step.weights, torch.full((32,), 1 / 32))]
        found.append(torch.stack([*cosines, *worse]))
        optimizer.step()
    labels = torch.arange(1000) % 10
    accuracy = (model(centres[labels] + torch.randn(1000, 20)).argmax(1) == labels).float().mean()
    names = ("cosine_partial", "cosine_mean", "worsened_partial", "worsened_mean", "accuracy")
    numbers = dict(zip(names, [*torch.stack(found).mean(0).tolist(), accuracy.item()], strict=True))
    said = "By the last layer {worsened_partial:.0%} of samples get worse, by the mean {worsened_mean:.0%}; "
    said += "cosine to the update of the whole {cosine_partial:.3f} and {cosine_mean:.3f}; accuracy {accuracy:.3f}."
    print(said.format(**numbers))
    return numbers


if __name__ == "__main__":
    main()
