"""Mean, Sum and Constant: the weightings that do not look at G, and the tree of errors."""

import doctest
import importlib

import pytest
import torch

from gramjd import errors
from gramjd.aggregation import Constant, Mean, Sum, UPGrad, Weighting

J = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]])


@pytest.mark.parametrize(
    ("weighting", "w"), [(Mean(), [1 / 3] * 3), (Sum(), [1.0] * 3), (Constant([2, 0, -1]), [2.0, 0.0, -1.0])]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_update(weighting, w, dtype):
    expected = torch.tensor(w, dtype=dtype)
    torch.testing.assert_close(weighting(J.to(dtype) @ J.to(dtype).mT), expected)
    torch.testing.assert_close(weighting.aggregate(J.to(dtype)), J.to(dtype).mT @ expected)


@pytest.mark.parametrize("weighting", [Mean(), Sum(), Constant([]), UPGrad()])
def test_no_losses_no_weights(weighting):
    assert weighting(torch.zeros(0, 0)).shape == (0,)


@pytest.mark.parametrize("weighting", [Mean(), Sum(), Constant([1, 2])])
def test_refuses_what_is_not_square(weighting):
    with pytest.raises(errors.AggregatorError, match="must be square"):
        weighting(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("weights", "message"), [([1.0, float("inf")], "finite"), (None, "vector"), ([[1.0]], "shape")]
)
def test_constant_refuses(weights, message):
    with pytest.raises(errors.AggregatorError, match=message):
        Constant(weights)


def test_constant_refuses_another_length():
    with pytest.raises(errors.AggregatorError, match="weights has 2 entries, but the Gramian is 3 x 3"):
        Constant([1, 2])(torch.eye(3))


def test_constant_hands_out_copies():
    weighting = Constant(torch.ones(2, dtype=torch.float64))
    weighting(torch.eye(2, dtype=torch.float64)).zero_()
    assert torch.equal(weighting(torch.eye(2)), torch.ones(2))


def test_reprs():
    assert [repr(w) for w in (Mean(), Sum(), Constant([1, 2.5]))] == ["Mean()", "Sum()", "Constant([1.0, 2.5])"]
    assert isinstance(Mean(), Weighting)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("LossError", ValueError),
        ("InputError", ValueError),
        ("GraphError", RuntimeError),
        ("AggregatorError", ValueError),
        ("BudgetError", MemoryError),
        ("RuleError", RuntimeError),
    ],
)
def test_errors_are_ours_and_their_builtin(name, builtin):
    assert issubclass(getattr(errors, name), (errors.GramjdError,))
    assert issubclass(getattr(errors, name), builtin)


@pytest.mark.parametrize("name", ["mean", "sum", "constant", "upgrad", "solvers.dual_cone"])
def test_examples_in_docstrings(name):
    importlib.import_module("gramjd.aggregation")
    import sys

    result = doctest.testmod(sys.modules[f"gramjd.aggregation.{name}"])
    assert result.attempted
    assert not result.failed
