"""Bad input: an error that says what came and what to do, and `.grad` as it was, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gramjd import Mean, UPGrad, explain, gram_backward, gramian, mtl_backward
from gramjd.errors import AggregatorError, BudgetError, GraphError, InputError, LossError
from tests.small import F64, batch_norm_net, grads, mlp, same

Scene = tuple[nn.Module, Tensor]


def scene() -> Scene:
    """A model and four losses of it."""
    model = mlp()
    return model, model(torch.randn(4, 5, dtype=F64)).square().sum(1)


@dataclass(frozen=True)
class Bad:
    """`change` makes bad losses of good ones; the call with `options` must raise `error` with a text like `match`."""

    error: type[BaseException]
    match: str
    change: Callable[[nn.Module, Tensor], Any] = lambda model, losses: losses
    aggregator: Callable[[Tensor], Any] = field(default_factory=Mean)
    options: Callable[[nn.Module, Tensor], dict[str, Any]] = lambda model, losses: {}
    build: Callable[[], Scene] = scene


def freed(model: nn.Module, losses: Tensor) -> Tensor:
    before = grads(model.parameters())
    losses.sum().backward()
    for p, grad in zip(model.parameters(), before, strict=True):
        p.grad = grad
    return losses


def edited(model: nn.Module, losses: Tensor) -> Tensor:
    hidden = model[1](model[0](torch.randn(4, 5, dtype=F64)))
    out = model[2](hidden).square().sum(1)
    with torch.no_grad():
        hidden.mul_(2)
    return out


def edited_weight(model: nn.Module, losses: Tensor) -> Tensor:
    with torch.no_grad():
        model[2].weight.add_(1)
    return losses


def with_nan(model: nn.Module, losses: Tensor) -> Tensor:
    return losses * torch.tensor([1, 1, float("nan"), 1], dtype=F64)


def raising(G: Tensor) -> Tensor:
    raise ZeroDivisionError("the aggregator's own words")


def batch_norm_scene() -> Scene:
    model = batch_norm_net(64)
    return model, model(torch.randn(8, 5, dtype=F64)).square().sum(1)


def stranger(model: nn.Module, losses: Tensor) -> Tensor:
    return torch.randn(3, 2, dtype=F64, requires_grad=True)


LOSSES = {
    "no grad": Bad(LossError, r"losses does not require grad: compute it", lambda m, x: x.detach()),
    "the model": Bad(LossError, r"losses is a \w+, a module; expected what is computed with it", lambda m, x: m),
    "pairs": Bad(LossError, r"losses\[0\] is a tuple; .*: losses by name are", lambda m, x: [("a", x.sum())]),
    "made under no_grad": Bad(LossError, "requires_grad=True, outside", lambda m, x: torch.ones(4)),
    "one of them without grad": Bad(LossError, r"losses\[1\] does not require grad", lambda m, x: [x, x.detach()]),
    "empty tensor": Bad(LossError, "no losses: got an empty.*give at least one", lambda m, x: x[:0]),
    "empty list": Bad(LossError, "no losses: got an empty.*give at least one", lambda m, x: []),
    "only empty tensors": Bad(LossError, "no losses: got an empty", lambda m, x: [x[:0], x[:0]]),
    "NaN": Bad(LossError, "NaN or infinite.*check the forward pass", with_nan),
    "infinite": Bad(LossError, "NaN or infinite.*check the forward pass", lambda m, x: x / 0.0),
    "negative infinity in a list": Bad(LossError, r"losses\[1\] has NaN or infinite", lambda m, x: [x, -x[0] / 0]),
    "complex": Bad(LossError, r"complex \(torch.complex128\).*modulus or real part", lambda m, x: torch.complex(x, x)),
    "integer": Bad(LossError, r"dtype torch.int64.*must be floating point", lambda m, x: torch.arange(4)),
    "bool": Bad(LossError, r"dtype torch.bool.*must be floating point", lambda m, x: x > 0),
    "a float": Bad(LossError, r"losses\[0\] is a float; expected a tensor", lambda m, x: [1.0]),
    "a string": Bad(LossError, r"is a str; expected a tensor", lambda m, x: "losses"),
    "a mapping without grad": Bad(LossError, r"losses\['b'\] does not require", lambda m, x: {"a": x, "b": x.detach()}),
    "a mapping of nothing": Bad(LossError, "no losses: got an empty", lambda m, x: {"a": None}),
    "a mapping of floats": Bad(LossError, r"losses\['a'\] is a float; expected a tensor", lambda m, x: {"a": 1.0}),
    "a set": Bad(LossError, r"is a set, whose order is not defined", lambda m, x: {x}),
    "no numbers": Bad(LossError, r"on the meta device", lambda m, x: torch.ones(4, device="meta", requires_grad=True)),
    "nested lists": Bad(LossError, r"losses\[0\] is a list; expected a tensor", lambda m, x: [[x], [x]]),
    "a number alone": Bad(LossError, "is a float; expected a tensor", lambda m, x: 1.0),
    "None": Bad(LossError, "is a NoneType; expected a tensor", lambda m, x: None),
    "freed graph": Bad(GraphError, "compute the losses anew.*backward through the graph a second time", freed),
    "edited activation": Bad(GraphError, "returns a new tensor.*modified by an inplace operation", edited),
    "edited weight": Bad(GraphError, "returns a new tensor.*modified by an inplace operation", edited_weight),
}
INPUTS = {
    "not reached": Bad(
        InputError,
        r"input 0 \(shape \(3, 2\)\) is not reached by any loss: remove it",
        options=lambda m, x: {"inputs": [stranger(m, x)]},
    ),
    "one of two not reached": Bad(
        InputError, r"input 1 .*not reached", options=lambda m, x: {"inputs": [m[0].weight, stranger(m, x)]}
    ),
    "an alias made later": Bad(
        InputError, r"input 0 .*not reached", options=lambda m, x: {"inputs": [m[0].weight.view(-1)]}
    ),
    "empty": Bad(InputError, "`inputs` is empty: give at least one", options=lambda m, x: {"inputs": []}),
    "no grad": Bad(
        InputError,
        r"inputs\[0\] \(shape \(2, 3\)\) does not require grad: set requires_grad",
        options=lambda m, x: {"inputs": [torch.ones(2, 3)]},
    ),
    "not a tensor": Bad(InputError, r"inputs\[1\] is a str", options=lambda m, x: {"inputs": [m[0].weight, "w"]}),
    "a module": Bad(InputError, r"inputs\[0\] is a Linear", options=lambda m, x: {"inputs": [m[0]]}),
    "a frozen module": Bad(
        InputError, r"`inputs` is a ReLU without a parameter", options=lambda m, x: {"inputs": torch.nn.ReLU()}
    ),
    "a module not reached": Bad(
        InputError, "no loss reaches any parameter", options=lambda m, x: {"inputs": torch.nn.Linear(2, 2)}
    ),
}
GRAMIAN_INPUTS = {
    "gramian_inputs not reached": Bad(
        InputError, "input 0 .*not reached by any loss", options=lambda m, x: {"gramian_inputs": [stranger(m, x)]}
    ),
    "gramian_inputs empty": Bad(
        InputError, "`gramian_inputs` is empty", options=lambda m, x: {"gramian_inputs": iter(())}
    ),
    "gramian_inputs without grad": Bad(
        InputError, r"gramian_inputs\[0\].*does not require grad", options=lambda m, x: {"gramian_inputs": [x.detach()]}
    ),
    "inputs not reached beside good gramian_inputs": Bad(
        InputError,
        "input 0 .*not reached by any loss",
        options=lambda m, x: {"inputs": [stranger(m, x)], "gramian_inputs": [m[0].weight]},
    ),
}
WEIGHTS = {
    "matrix": Bad(AggregatorError, r"returned shape \(4, 4\) for 4 losses; expected \(4,\)", aggregator=lambda G: G),
    "too short": Bad(AggregatorError, r"returned shape \(3,\) for 4 losses", aggregator=lambda G: G[0, :3]),
    "too long": Bad(AggregatorError, r"returned shape \(5,\) for 4 losses", aggregator=lambda G: G.new_ones(5)),
    "scalar": Bad(AggregatorError, r"returned shape \(\) for 4 losses", aggregator=lambda G: G.sum()),
    "column": Bad(AggregatorError, r"returned shape \(4, 1\)", aggregator=lambda G: G[:, :1]),
    "a list": Bad(AggregatorError, r"returned a list; expected a tensor", aggregator=lambda G: [0.25] * 4),
    "None": Bad(AggregatorError, "returned a NoneType; expected a tensor", aggregator=lambda G: None),
    "other device": Bad(
        AggregatorError, "weights on meta; expected them on cpu", aggregator=lambda G: torch.ones(4, device="meta")
    ),
    "integer": Bad(
        AggregatorError, "dtype torch.int64; expected floating point", aggregator=lambda G: torch.ones(4).long()
    ),
    "complex": Bad(
        AggregatorError, "dtype torch.complex64; expected", aggregator=lambda G: torch.ones(4, dtype=torch.complex64)
    ),
    "NaN": Bad(AggregatorError, "NaN or infinite weights", aggregator=lambda G: G[0] * float("nan")),
    "infinite": Bad(AggregatorError, "NaN or infinite weights", aggregator=lambda G: G[0] / 0.0),
    "raises": Bad(ZeroDivisionError, "the aggregator's own words", aggregator=raising),
    "a name": Bad(
        AggregatorError, r"must be a function from G to weights, such as UPGrad\(\); got 'upgrad'", aggregator="upgrad"
    ),  # type: ignore[arg-type]
    "a class": Bad(
        AggregatorError, r"such as UPGrad\(\); got <class .*: an object of .* UPGrad\(\)", aggregator=UPGrad
    ),
    "a second loss": Bad(
        AggregatorError, r"a tensor of shape \(\): several losses are one list", aggregator=torch.ones(())
    ),
    "weights": Bad(AggregatorError, r"got \[1.0, 2.0\]: fixed weights are Constant", aggregator=[1.0, 2.0]),
}
BUDGET = {
    "budget": Bad(
        BudgetError,
        r"memory_budget is .*: raise it to at least \d+ bytes",
        options=lambda m, x: {"memory_budget": 100},
        build=batch_norm_scene,
    )
}
SHARED = {**LOSSES, **INPUTS, **BUDGET}
ALL = {f"losses: {k}": v for k, v in LOSSES.items()} | {f"inputs: {k}": v for k, v in INPUTS.items()}
ALL |= GRAMIAN_INPUTS | {f"weights: {k}": v for k, v in WEIGHTS.items()} | BUDGET


def prepared(bad: Bad, filled: bool) -> tuple[nn.Module, Any, dict[str, Any]]:
    model, losses = bad.build()
    if filled:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
    return model, bad.change(model, losses), bad.options(model, losses)


@pytest.mark.parametrize("filled", [False, True], ids=["no grad yet", "grad there"])
@pytest.mark.parametrize("name", list(ALL))
def test_gram_backward_refuses_and_leaves_grad(name: str, filled: bool) -> None:
    bad = ALL[name]
    model, losses, options = prepared(bad, filled)
    before = grads(model.parameters())
    with pytest.raises(bad.error, match=bad.match):
        gram_backward(losses, bad.aggregator, **options)
    assert same(grads(model.parameters()), before)


@pytest.mark.parametrize("name", list(SHARED))
def test_gramian_refuses_and_leaves_grad(name: str) -> None:
    bad = SHARED[name]
    model, losses, options = prepared(bad, False)
    with pytest.raises(bad.error, match=bad.match):
        gramian(losses, **options)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n, bad in (LOSSES | INPUTS).items() if issubclass(bad.error, ValueError)])
def test_explain_refuses(name: str) -> None:
    bad = (LOSSES | INPUTS)[name]
    model, losses, options = prepared(bad, False)
    with pytest.raises(bad.error, match=bad.match):
        explain(losses, **options)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("filled", [False, True], ids=["no grad yet", "grad there"])
@pytest.mark.parametrize("name", [*LOSSES, *(f"weights: {k}" for k in WEIGHTS)])
def test_mtl_backward_refuses_and_leaves_grad(name: str, filled: bool) -> None:
    bad = LOSSES[name] if name in LOSSES else ALL[name]
    model, losses, _ = prepared(bad, filled)
    if name not in LOSSES:
        losses = list(losses.unbind())
    before = grads(model.parameters())
    with pytest.raises(bad.error, match=bad.match):
        mtl_backward(losses, bad.aggregator)
    assert same(grads(model.parameters()), before)


def test_errors_of_users_are_value_errors_too() -> None:
    """`except ValueError` and `except RuntimeError` catch what one would expect."""
    assert issubclass(LossError, ValueError)
    assert issubclass(InputError, ValueError)
    assert issubclass(AggregatorError, ValueError)
    assert issubclass(GraphError, RuntimeError)
    assert issubclass(BudgetError, MemoryError)


def test_the_graph_survives_a_refusal() -> None:
    """After an aggregator has failed the same losses can be used again."""
    model, losses = scene()
    with pytest.raises(ZeroDivisionError):
        gram_backward(losses, raising)
    gram_backward(losses, Mean())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named() -> None:
    layer = nn.Linear(3, 2)
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.strided)
    losses = layer(nested).to_padded_tensor(0.0).square().sum((1, 2))
    with pytest.raises(GraphError, match=r"nested tensor.*padded tensor"):
        gramian(losses)
    assert layer.weight.grad is None


def test_module_hooks_are_named() -> None:
    model = mlp()
    model[0].register_full_backward_hook(lambda *_: None)
    losses = model(torch.randn(4, 5, dtype=F64)).square().sum(1)
    with pytest.raises(GraphError, match=r"register_full_backward_hook.*Tensor\.register_hook"):
        gram_backward(losses)
    assert all(p.grad is None for p in model.parameters())
