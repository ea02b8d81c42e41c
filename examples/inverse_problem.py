"""An inverse problem: which conductivity explains noisy temperatures? u_t = kappa u_xx with kappa to be found.

The unknown number is one more parameter beside the network's, and the observations are one more block of residuals.
"""

import math

import torch
from torch import Tensor, nn

import gramjd

KAPPA, NOISE = 0.1, 0.01


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, point by point, still differentiable."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def solution(x: Tensor) -> Tensor:
    """sin(pi x) exp(-kappa pi^2 t)."""
    return (math.pi * x[:, 0]).sin() * (-KAPPA * math.pi**2 * x[:, 1]).exp()


def main(steps: int = 60) -> float:
    """Train; returns the kappa that was found."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    kappa = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))  # ten times too much
    inside = torch.rand(150, 2).double().requires_grad_()
    places = torch.rand(80, 2).double()
    observed = solution(places) + NOISE * torch.randn(80).double()

    def residuals() -> dict[str, Tensor]:
        slope = derivative(model(inside), inside)
        equation = slope[:, 1] - kappa * derivative(slope[:, 0], inside)[:, 0]
        return {"equation": equation, "data": model(places)[:, 0] - observed}

    optimizer = gramjd.optim.LevenbergMarquardt(
        [*model.parameters(), kappa], weights={"equation": 1 / 150, "data": 1.0}
    )
    for step in range(steps):
        loss = optimizer.step(residuals)
        if step % 15 == 0:
            print(f"step {step:2d}  loss {loss:.2e}  kappa {kappa.item():.4f}")
    print(f"kappa {kappa.item():.4f}, true {KAPPA}")
    return kappa.item()


if __name__ == "__main__":
    main()
