"""Burgers' equation u_t + u u_x = nu u_xx from -sin(pi x): a front forms at x = 0.

With `scaling="tensor"` each parameter is counted in units of its own columns of the Jacobian.
"""

import math

import torch
from torch import Tensor, nn

import gramjd

VISCOSITY = 0.05


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, point by point, still differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def main(steps: int = 120) -> float:
    """Train; returns the root mean square of the equation's residuals at points that were not trained on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    low, size = torch.tensor([-1.0, 0.0]).double(), torch.tensor([2.0, 1.0]).double()  # of x and t
    inside = (low + size * torch.rand(300, 2).double()).requires_grad_()
    start, edge = low + size * torch.rand(50, 2).double(), low + size * torch.rand(40, 2).double()
    start[:, 1], edge[:20, 0], edge[20:, 0] = 0.0, -1.0, 1.0

    def equation(x: Tensor) -> Tensor:
        u = model(x)
        slope = derivative(u, x)
        return slope[:, 1] + u[:, 0] * slope[:, 0] - VISCOSITY * derivative(slope[:, 0], x)[:, 0]

    def residuals() -> list[Tensor]:
        return [equation(inside), model(start)[:, 0] + (math.pi * start[:, 0]).sin(), model(edge)]

    optimizer = gramjd.optim.LevenbergMarquardt(
        model.parameters(), weights=[1 / 300, 10 / 50, 10 / 40], scaling="tensor"
    )
    for step in range(steps):
        loss = optimizer.step(residuals)
        if step % 30 == 0:
            print(f"step {step:3d}  loss {loss:.2e}  gain {optimizer.last.gain:.2f}")
    rest = equation((low + size * torch.rand(500, 2).double()).requires_grad_()).square().mean().sqrt().item()
    print(f"residual at new points {rest:.1e}")
    return rest


if __name__ == "__main__":
    main()
