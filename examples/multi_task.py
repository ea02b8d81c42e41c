"""Two tasks on a shared trunk: the trunk follows a direction that serves both, each head its own loss."""

import torch
from torch import nn
from torch.nn.functional import mse_loss

import gramjd


def main(steps: int = 300) -> tuple[float, float]:
    """Train; returns the final loss of each task."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    heads = nn.ModuleList([nn.Linear(16, 1), nn.Linear(16, 1)])
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.02)
    inputs = torch.randn(128, 8)
    # The second loss is a hundred times as large. Where the two conflict, the trunk gives up neither for the other.
    targets = [inputs[:, :1].sin(), 10 * (inputs[:, 1:2] * inputs[:, 2:3])]

    losses = []
    for step in range(steps):
        features = trunk(inputs)
        losses = [mse_loss(head(features), target) for head, target in zip(heads, targets, strict=True)]
        optimizer.zero_grad()
        result = gramjd.mtl_backward(losses)  # which parameters are shared is read from the graph
        torch.nn.utils.clip_grad_norm_([*trunk.parameters(), *heads.parameters()], 10.0)
        optimizer.step()
        if step % 100 == 0:
            shown = [round(w, 2) for w in result.weights.tolist()]
            print(f"step {step:4d}  losses {losses[0]:.3f} {losses[1]:.2f}  weights {shown}")
    print(f"final losses {losses[0]:.3f} {losses[1]:.2f}")
    return losses[0].item(), losses[1].item()


if __name__ == "__main__":
    main()
