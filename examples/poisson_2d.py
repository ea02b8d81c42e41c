"""u_xx + u_yy = f on the unit square, zero on its boundary: new points every twenty steps.

Within a step the closure must return the same residuals for the same parameters; between steps the points may change.
"""

import math

import torch
from torch import Tensor, nn

import gramjd


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, point by point, still differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def solution(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y)."""
    return (math.pi * x).sin().prod(1)


def points() -> tuple[Tensor, Tensor]:
    """Inside and on the boundary."""
    edge = torch.rand(60, 2, dtype=torch.float64)
    edge[torch.arange(60), torch.arange(60) % 2] = (torch.arange(60) // 2 % 2).double()
    return torch.rand(240, 2, dtype=torch.float64).requires_grad_(), edge


def main(steps: int = 200) -> float:
    """Train; returns the relative error of the solution."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    inside, edge = points()

    def residuals() -> dict[str, Tensor]:
        slope = derivative(model(inside), inside)
        bend = sum(derivative(slope[:, k], inside)[:, k] for k in (0, 1))
        return {"equation": bend + 2 * math.pi**2 * solution(inside.detach()), "boundary": model(edge)}

    optimizer = gramjd.optim.LevenbergMarquardt(model.parameters(), weights={"equation": 1 / 240, "boundary": 1.0})
    for step in range(steps):
        if step % 20 == 0:
            inside, edge = points()
        loss = optimizer.step(residuals)
        if step % 50 == 0:
            print(f"step {step:3d}  loss {loss:.2e}  damping {optimizer.last.damping:.1e}")
    test = torch.rand(1000, 2, dtype=torch.float64)
    error = ((model(test)[:, 0] - solution(test)).norm() / solution(test).norm()).item()
    print(f"relative error {error:.1e}")
    return error


if __name__ == "__main__":
    main()
