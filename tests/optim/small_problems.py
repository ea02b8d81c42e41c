"""Small least squares problems, and their steps from numpy."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracle import oracle_jacobian
from tests.small import F64, mlp


def derivative(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


class Fit:
    """A network on random data: `m` residuals of a regression, and of a differential equation beside it."""

    def __init__(self, points: int = 6, width: int = 5, seed: int = 0, dtype: torch.dtype = F64) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = mlp(2, width, 1, dtype=dtype)
            self.x = torch.randn(points, 2, dtype=dtype).requires_grad_()
            self.y = torch.randn(points, 1, dtype=dtype)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def data(self) -> Tensor:
        return self.model(self.x) - self.y

    def blocks(self) -> dict[str, Tensor]:
        slope = derivative(self.model(self.x), self.x)
        return {"data": self.data(), "bend": derivative(slope[:, 0], self.x)[:, 0] + 0.5}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def matrix(parts: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """J [m, n] by one backward pass per residual."""
    return torch.cat([j.reshape(len(j), -1) for j in oracle_jacobian(parts, parameters)], 1)


def damped_step(J: Tensor, r: Tensor, damping: float, d: Tensor | None = None) -> Tensor:
    """`argmin |r - J s|^2 + damping |d s|^2`, by stacking."""
    d = torch.ones(J.shape[1], dtype=F64) if d is None else d
    A = np.concatenate([J.numpy(), math.sqrt(damping) * np.diag(d.numpy())])
    return torch.from_numpy(np.linalg.lstsq(A, np.concatenate([r.numpy(), np.zeros(J.shape[1])]), rcond=None)[0])


def rosenbrock(p: Tensor) -> Tensor:
    """Zero at (1, 1)."""
    return torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])


class Spread(nn.Module):
    """Every kind of factor: an embedding tied to a head, a convolution, a recurrence, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, dtype=F64)
        self.convolution = nn.Conv1d(4, 4, 3, padding=1, dtype=F64)
        self.cell = nn.RNNCell(4, 4, dtype=F64)
        self.norm = nn.LayerNorm(4, dtype=F64)
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=F64))
        self.unused = nn.Linear(3, 2, dtype=F64)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.convolution(self.table(tokens).transpose(1, 2)).transpose(1, 2)
        state = torch.zeros(len(tokens), 4, dtype=F64)
        for t in range(h.shape[1]):
            state = self.cell(self.norm(h[:, t]), state)
        return self.scale * (state @ self.table.weight.T)
