"""What closures may return, with weights."""

from __future__ import annotations

import pytest
import torch

from gramjd.errors import InputError, LossError
from gramjd.optim.residuals import evaluate
from tests.small import F64

P = torch.tensor([1.0, -2.0, 3.0], dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    ("closure", "weights", "values"),
    [
        (lambda: P * 2, None, [2, -4, 6]),
        (lambda: P.view(3, 1), [4.0], [2, -4, 6]),
        (lambda: [P[:1], P[1:]], (9.0, 1), [3, -2, 3]),
        (lambda: {"a": P[0], "b": P[1:]}, {"b": torch.tensor([4.0, 0.0]), "a": 1.0}, [1, -4, 0]),
        (lambda: {"a": P[:0], "b": P}, {"a": 3.0, "b": 1.0}, [1, -2, 3]),
        (lambda: P.float(), None, [1, -2, 3]),
    ],
)
def test_values_and_loss(closure, weights, values):
    found = evaluate(closure, weights)
    assert found.values.dtype == F64
    assert found.values.tolist() == pytest.approx(values)
    assert found.loss == pytest.approx(sum(v * v for v in values) / 2)
    assert not found.values.requires_grad


def test_gradients_are_enabled_inside():
    with torch.no_grad():
        assert evaluate(lambda: P * 2, None).parts[0].requires_grad


@pytest.mark.parametrize(
    ("closure", "said"),
    [
        (lambda: None, "the closure returned None; expected residuals: end it with `return residuals`"),
        (lambda: 3.0, "the closure returned a float; expected residuals: a tensor, several of them in a list"),
        (lambda: {"a": 3.0}, "block 'a' of the residuals is a float"),
        (lambda: [P, "x"], "block 1 of the residuals is a str"),
        (P * 2, "step got a Tensor; expected the function that returns the residuals"),
        (lambda: P[:0], "there are no losses"),
        (lambda: P.square().sum(), "the closure returned one number; expected the residuals themselves"),
        (lambda: P.detach(), "does not require grad"),
        (lambda: P / 0, "NaN or infinite"),
        (lambda: P * 1j, "complex"),
    ],
)
def test_what_is_no_residual(closure, said):
    with pytest.raises(LossError) as raised:
        evaluate(closure, None)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": 1.0}, "weights are given for 'a', but the closure returned 'a', 'b': give one per block"),
        (2.0, "weights is 2.0; expected one per block: a dictionary for a dictionary, else a list"),
        ([1.0, 2.0], "weights are given for 0, 1, but the closure returned 'a', 'b'"),
        ({"a": 1.0, "b": -1.0}, "the weight of block 'b' must be finite, 0 or more; got -1.0"),
        ({"a": 1.0, "b": float("nan")}, "the weight of block 'b' must be finite, 0 or more; got nan"),
        ({"a": 1.0, "b": torch.ones(3)}, "block 'b' has shape [3], which cannot be expanded to the block's [2]"),
    ],
)
def test_weights_that_do_not_fit(weights, said):
    with pytest.raises(InputError) as raised:
        evaluate(lambda: {"a": P[0], "b": P[1:]}, weights)
    assert said in str(raised.value)
