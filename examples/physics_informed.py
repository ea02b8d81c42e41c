"""A physics-informed network for y'' = -y, y(0) = 0, y'(0) = 1, whose solution is sin.

The residual and the two initial conditions are three losses that pull at the same weights. The residual holds second
derivatives of the network; the walk goes through them like through any other graph.
"""

import torch
from torch import Tensor, nn

import gramjd


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, point by point, still differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def main(steps: int = 800) -> float:
    """Train; returns the largest distance to sin on [0, 3]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        x = 3 * torch.rand(64, 1)
        x[0] = 0.0
        x.requires_grad_()
        y = model(x)
        slope = derivative(y, x)
        residual = derivative(slope, x) + y
        losses = torch.stack([residual.square().mean(), y[0, 0].square(), (slope[0, 0] - 1).square()])
        optimizer.zero_grad()
        gramjd.gram_backward(losses, inputs=model)
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step:4d}  residual {losses[0]:.4f}  start {losses[1]:.4f}  slope {losses[2]:.4f}")
    x = torch.linspace(0, 3, 50)[:, None]
    error = (model(x) - x.sin()).abs().max().item()
    print(f"largest distance to sin {error:.3f}")
    return error


if __name__ == "__main__":
    main()
