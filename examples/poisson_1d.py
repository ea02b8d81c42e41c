"""u'' = f on (0, 1) with u = 0 at both ends, solved by a network and Levenberg-Marquardt.

A step takes all residuals at once: those of the equation, and those of the ends, which weigh more. There is no learning
rate to choose.
"""

import math

import torch
from torch import Tensor, nn

import gramjd


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, point by point, still differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def main(steps: int = 200) -> float:
    """Train; returns the relative error of the solution sin(2 pi x)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    x = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None].requires_grad_()
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    f = -((2 * math.pi) ** 2) * (2 * math.pi * x.detach()).sin()

    def residuals() -> dict[str, Tensor]:
        slope = derivative(model(x), x)
        return {"equation": derivative(slope, x) - f, "ends": model(ends)}

    optimizer = gramjd.optim.LevenbergMarquardt(model.parameters(), weights={"equation": 1 / len(x), "ends": 100.0})
    for step in range(steps):
        loss = optimizer.step(residuals)
        if step % 50 == 0:
            print(f"step {step:3d}  loss {loss:.2e}  damping {optimizer.last.damping:.1e}")
    exact = (2 * math.pi * x.detach()).sin()
    error = ((model(x) - exact).norm() / exact.norm()).item()
    print(f"relative error {error:.1e}")
    return error


if __name__ == "__main__":
    main()
