"""Teaching the walk a node of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gramjd import explain, gramian, register_rule
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules import CUSTOM, TABLE
from gramjd.engine.rules.vocabulary import each, mixing, pointwise
from gramjd.errors import DenseRowsWarning, RuleError
from tests.oracle import oracle_gramian, relative_error
from tests.small import F64


class Cube(torch.autograd.Function):
    """x^3, element by element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Softly(torch.autograd.Function):
    """Softmax over the last dimension: samples apart, columns mixed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.softmax(-1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(-1, keepdim=True))


class Scaled(torch.autograd.Function):
    """x times a row of scales: two inputs, the second broadcast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return g * scale, (g * x).sum(0)


@each
def scaled_rule(node: NodeView, c: Cotangent) -> Sends:
    """Cotangents of both inputs by hand; the broadcast one is left for the walk to sum."""
    yield node.send(0, c.layout, lambda: c.values * node.saved_tensors[1])
    yield node.send(1, c.layout, lambda: c.values * node.saved_tensors[0], shape=c.shape)


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    before = [dict(kept) for kept in (TABLE, CUSTOM)]
    yield
    for kept, was in zip((TABLE, CUSTOM), before, strict=True):
        kept.clear()
        kept.update(was)


class Net(nn.Module):
    """A function of a user between two linear layers, so that rows must get past it."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)
        self.scale = nn.Parameter(torch.rand(6, dtype=F64))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        extra = [self.scale] if self.function is Scaled else []
        return self.last(self.function.apply(self.first(x), *extra))


def losses_of(function: type[torch.autograd.Function]) -> Tensor:
    return Net(function)(torch.randn(4, 5, dtype=F64)).square().sum(1)


RULES: dict[str, tuple[type[torch.autograd.Function], Rule]] = {
    "CubeBackward": (Cube, pointwise),
    "SoftlyBackward": (Softly, mixing(lambda node: [len(node.output().shape) - 1])),
    "ScaledBackward": (Scaled, scaled_rule),
}


@pytest.mark.parametrize("name", RULES)
def test_without_a_rule_rows_are_dense_and_right(name: str) -> None:
    losses = losses_of(RULES[name][0])
    with pytest.warns(DenseRowsWarning, match=f"{name} has no rule.*register_rule"):
        G = gramian(losses)
    assert relative_error(G, oracle_gramian(losses)) < 1e-12
    assert [loss.operation for loss in explain(losses).dense] == [name]


@pytest.mark.parametrize("name", RULES)
def test_with_a_rule_the_batch_axis_survives(name: str) -> None:
    function, rule = RULES[name]
    register_rule(name, rule)
    losses = losses_of(function)
    plan = explain(losses)
    assert plan.dense == ()
    assert sum(use.rows == "batch axis 4, 1 row" for use in plan.uses) == 2
    assert relative_error(gramian(losses), oracle_gramian(losses)) < 1e-12


@pytest.mark.parametrize("name", ["CubeBackward", "SoftlyBackward"])
def test_a_rule_serves_stacked_rows_too(name: str) -> None:
    """Losses per sample and task: K = 2 rows with a batch axis."""
    function, rule = RULES[name]
    register_rule(name, rule)
    out = Net(function)(torch.randn(4, 5, dtype=F64))
    losses = torch.stack([out.square().sum(1), out.sin().sum(1)])
    assert explain(losses).dense == ()
    assert relative_error(gramian(losses), oracle_gramian(losses)) < 1e-12


def test_a_decorator_returns_the_function() -> None:
    @register_rule("CubeBackward")
    def rule(node: NodeView) -> Sends:
        return pointwise(node)

    assert TABLE["CubeBackward"] is rule
    losses = losses_of(Cube)
    assert relative_error(gramian(losses), oracle_gramian(losses)) < 1e-12


@each
def short(node: NodeView, c: Cotangent) -> Sends:
    yield node.send(0, c.layout, lambda: c.values[:, :, :-1])


@each
def unstacked(node: NodeView, c: Cotangent) -> Sends:
    yield node.send(0, c.layout, lambda: c.values[0])


@each
def other_layout(node: NodeView, c: Cotangent) -> Sends:
    from gramjd.engine.layout import dense

    yield node.send(0, dense([0], 7), lambda: c.values)


WRONG: dict[str, tuple[Rule, str]] = {
    "one column short": (short, r"rule of CubeBackward returned shape \(1, 4, 5\) for input 0; expected \(1, 4, 6\)"),
    "no stacked rows": (unstacked, r"rule of CubeBackward returned shape \(4, 6\).*stacked rows first"),
    "layout of another size": (other_layout, r"rule of CubeBackward returned a layout for another size than \(4, 6\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_named(name: str) -> None:
    rule, match = WRONG[name]
    register_rule("CubeBackward", rule)
    model = Net(Cube)
    losses = model(torch.randn(4, 5, dtype=F64)).square().sum(1)
    with pytest.raises(RuleError, match=match):
        gramian(losses)
    assert all(p.grad is None for p in model.parameters())


def test_a_rule_is_not_replaced_by_accident() -> None:
    before = TABLE["MulBackward0"]
    with pytest.raises(RuleError, match=r"MulBackward0 has a rule already; pass replace=True"):
        register_rule("MulBackward0", pointwise)
    assert TABLE["MulBackward0"] is before
    register_rule("MulBackward0", pointwise, replace=True)
    assert TABLE["MulBackward0"] is pointwise


@pytest.mark.parametrize("name", ["Cube", "", "mul", 3, None])
def test_names_that_are_no_nodes(name: Any) -> None:
    with pytest.raises(RuleError, match=r"not the name of a backward node; take it from .*grad_fn.name"):
        register_rule(name, pointwise)


@pytest.mark.parametrize("rule", ["pointwise", 3, {}])
def test_rules_that_cannot_be_called(rule: Any) -> None:
    with pytest.raises(RuleError, match=f"a rule is a function of a NodeView; got a {type(rule).__name__}"):
        register_rule("CubeBackward", rule)
    assert "CubeBackward" not in TABLE
