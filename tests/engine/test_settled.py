"""Rows of a convolution that G and an update both need are formed once, where they are few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gramjd
from gramjd.engine.factor import Convolution, Outer
from gramjd.engine.given import GivenRows
from gramjd.engine.parameter import Jacobian
from gramjd.kernels import convolution, weighted
from tests.oracle import oracle_gramian


def factor(size: int, dtype: torch.dtype = torch.float32, **options: object) -> Convolution:
    """Three samples of images of that size, 8 to 16 channels; one sample is of no loss."""
    torch.manual_seed(0)
    given = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1} | options
    x = torch.randn(3, 8, size, size, dtype=dtype)
    weight = torch.randn(16, 8 // given["groups"], 3, 3, dtype=dtype)
    out = torch.conv2d(x, weight, None, given["stride"], given["padding"], given["dilation"], given["groups"])
    c = torch.randn(1, *out.shape, dtype=dtype)
    return Convolution(np.array([1, -1, 0]), tuple(weight.shape), "conv", x, c, given)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": [2, 2]}, {"groups": 2}, {"dilation": [2, 2]}],
    ids=["plain", "stride", "groups", "dilation"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_at_once(options: dict, dtype: torch.dtype) -> None:
    """They are the rows of the factor, by the way for wide images and by the other."""
    one = factor(40, dtype, **options)
    expected = one.rows(0, one.shape[0], torch.float64)
    torch.testing.assert_close(one.all_rows(dtype).double(), expected, rtol=1e-4, atol=1e-3)
    found = Jacobian(one.shape, [one]).settled(dtype)
    (rows,) = found.factors
    assert isinstance(rows, GivenRows)
    assert rows.owners.tolist() == [1, -1, 0]
    assert rows.nbytes <= 1.25 * one.nbytes
    w = torch.tensor([2.0, -1.0], dtype=dtype)
    torch.testing.assert_close(found.combined(w), Jacobian(one.shape, [one]).combined(w), rtol=1e-4, atol=1e-3)


def test_what_is_left_as_it_is() -> None:
    """Small images, whose rows are more numbers; other dtypes than that of G; other factors, and several."""
    small, large = factor(6), factor(40)
    assert not small.serves_as_rows(torch.float32)
    assert large.serves_as_rows(torch.float32)
    assert not large.serves_as_rows(torch.float64)
    outer = Outer(np.arange(2), (4, 3), "mm", torch.ones(1, 2, 1, 3), torch.ones(1, 1, 2, 1, 4))
    for factors in ([small], [outer], [large, large], []):
        jacobian = Jacobian(large.shape, factors)
        assert jacobian.settled(torch.float32) is jacobian


def test_a_step_forms_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """G and the update of a network of wide images come from one weight gradient per sample and layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(8, 3))
    data = torch.randn(4, 8, 36, 36)
    losses = net(data).square().sum(1)
    G = oracle_gramian(losses, list(net.parameters()))
    samples: list[int] = []
    whole = convolution._weight_gradients

    def counted(x: torch.Tensor, c: torch.Tensor, w: object) -> torch.Tensor:
        samples.append(len(x))
        return whole(x, c, w)

    monkeypatch.setattr(convolution, "_weight_gradients", counted)
    monkeypatch.setattr(weighted, "_weight_gradient", None)  # the update has no need of it
    step = gramjd.gram_backward(losses, gramjd.Mean(), update="reuse")
    assert sum(samples) == 2 * 4
    torch.testing.assert_close(step.gramian.double(), G, rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(net(data).square().sum(1).mean(), list(net.parameters()))
    for p, g in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)
