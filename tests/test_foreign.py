"""What takes a Jacobian is not given a Gramian; an aggregator cannot change what is returned."""

import types

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd import scalarization
from gramjd.errors import AggregatorError


@pytest.fixture
def losses() -> Tensor:
    return nn.Linear(3, 2)(torch.randn(4, 3)).square().sum(1)


def of_torchjd() -> type:
    """A class that stands where TorchJD's aggregators stand."""
    module = types.ModuleType("torchjd.aggregation._aggregator_bases")
    base = type("Aggregator", (nn.Module,), {"__module__": module.__name__})
    return type("UPGrad", (base,), {"forward": lambda self, matrix: matrix.mean(0), "__module__": module.__name__})


@pytest.mark.parametrize("call", [gramjd.gram_backward, lambda L, a: gramjd.mtl_backward(list(L), a)])
def test_aggregators_of_torchjd_are_refused_by_name(losses: Tensor, call: object) -> None:
    with pytest.raises(AggregatorError, match=r"combines the rows of a Jacobian.*UPGradWeighting\(\)"):
        call(losses, of_torchjd()())


def test_torchjd_itself(losses: Tensor) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    with pytest.raises(AggregatorError, match="combines the rows of a Jacobian"):
        gramjd.gram_backward(losses, aggregation.UPGrad())
    step = gramjd.gram_backward(losses, aggregation.UPGradWeighting())
    assert len(step.weights) == 4


@pytest.mark.parametrize(
    "function",
    [lambda J: J.mean(0), lambda grads: grads.sum(0), lambda jacobian: jacobian[0]],
    ids=["J", "grads", "jac"],
)
def test_a_function_of_the_jacobian_is_refused_by_its_argument(losses: Tensor, function: object) -> None:
    with pytest.raises(AggregatorError, match=r"argument is called .* given the Gramian"):
        gramjd.gram_backward(losses, function)


def test_functions_of_the_gramian_are_taken(losses: Tensor) -> None:
    for function in (lambda G: G.new_ones(len(G)), lambda *a: a[0].new_ones(4), torch.diag):
        assert gramjd.gramian(losses).shape == (4, 4)
        gramjd.gram_backward(losses, function, retain_graph=True)


@pytest.mark.parametrize("one", [scalarization.DWA(), scalarization.Uncertainty(2), scalarization.RandomLossWeights()])
def test_a_scalarization_is_no_aggregator(losses: Tensor, one: object) -> None:
    said = f"{type(one).__name__} makes one loss of all: call it with the losses"
    for call in (gramjd.gram_backward, lambda L, a: gramjd.mtl_backward(list(L), a)):
        with pytest.raises(AggregatorError, match=said):
            call(losses, one)


def test_a_model_in_the_place_of_the_aggregator(losses: Tensor) -> None:
    """Any module may be an aggregator; one that fails is told of in a note."""
    with pytest.raises(RuntimeError) as raised:
        gramjd.gram_backward(losses, nn.Linear(3, 2), retain_graph=True)
    assert "Linear was called as the aggregator, with G [4, 4]" in raised.value.__notes__[-1]
    with pytest.raises(ZeroDivisionError) as plain:
        gramjd.gram_backward(losses, lambda G: 1 / 0)
    assert not hasattr(plain.value, "__notes__")


@pytest.mark.parametrize("update", ["backward", "reuse"])
def test_an_aggregator_that_writes_to_the_gramian(update: str) -> None:
    model = nn.Linear(3, 2)
    losses = model(torch.randn(4, 3)).square().sum(1)
    expected = gramjd.gramian(losses)
    step = gramjd.gram_backward(losses, lambda G: G.zero_()[0] + 1, update=update)
    torch.testing.assert_close(step.gramian, expected)
