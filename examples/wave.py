"""A plucked string: u_tt = u_xx on (0, 1), with u = sin(pi x) and at rest at first.

Half way the optimizer is saved and loaded, as after an interruption: its damping goes on from where it was.
"""

import copy
import math

import torch
from torch import Tensor, nn

import gramjd


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, point by point, still differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def solution(x: Tensor) -> Tensor:
    """sin(pi x) cos(pi t)."""
    return (math.pi * x[:, 0]).sin() * (math.pi * x[:, 1]).cos()


def main(steps: int = 200) -> float:
    """Train; returns the relative error of the solution."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    inside = torch.rand(200, 2).double().requires_grad_()
    start, ends = torch.rand(40, 2).double(), torch.rand(40, 2).double()
    start[:, 1], ends[:20, 0], ends[20:, 0] = 0.0, 0.0, 1.0
    start.requires_grad_()

    def residuals() -> dict[str, Tensor]:
        slope, first = derivative(model(inside), inside), model(start)
        equation = derivative(slope[:, 1], inside)[:, 1] - derivative(slope[:, 0], inside)[:, 0]
        shape = first[:, 0] - solution(start.detach())
        return {"equation": equation, "shape": shape, "rest": derivative(first, start)[:, 1], "ends": model(ends)}

    weights = {"equation": 1 / 200, "shape": 1.0, "rest": 0.1, "ends": 1.0}
    optimizer = gramjd.optim.LevenbergMarquardt(model.parameters(), weights=weights, line_search=True)
    for step in range(steps):
        loss = optimizer.step(residuals)
        if step == steps // 2:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = gramjd.optim.LevenbergMarquardt(model.parameters(), weights=weights)
            optimizer.load_state_dict(saved)
    test = torch.rand(1000, 2).double()
    error = ((model(test)[:, 0] - solution(test)).norm() / solution(test).norm()).item()
    print(f"loss {loss:.1e}, relative error {error:.1e}")
    return error


if __name__ == "__main__":
    main()
