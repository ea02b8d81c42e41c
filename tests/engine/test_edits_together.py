"""An edit in place that cotangents of two layouts reach at once: the rows of one begin behind those of the other."""

import torch
from torch import nn

import gramjd
from tests.oracle import oracle_gramian, relative_error


def test_an_edit_that_two_kinds_of_losses_reach() -> None:
    torch.manual_seed(0)
    x, p = torch.randn(5, 2, 2, 3, dtype=torch.float64), nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    first = x @ p
    second = first.clone()
    second[:, :1] = first[:, :1] * 2
    third = second.clone()
    third[1:] = second[:4]
    error = (third - 0.3).square()
    losses = [error.mean((0, 1, 3)), error.mean()]
    assert relative_error(gramjd.gramian(losses), oracle_gramian(losses)) < 1e-12
