"""The rule in ten lines and the factor in forty that docs/extending.md shows, and taking rules away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gramjd
from gramjd import extend
from gramjd.engine.rules import CUSTOM, TABLE
from gramjd.errors import RuleError
from tests.oracle import assert_close_gramian, oracle_gramian

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def marked(what: str) -> list[str]:
    """The lines of code between two marks of the page."""
    text = re.search(rf"# {what}: begin\n(.*?)# {what}: end", PAGE.read_text(), re.S)
    assert text is not None
    return [line for line in text[1].splitlines() if line.strip()]


def test_the_page_runs() -> None:
    space: dict[str, Any] = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), space)
    assert not CUSTOM


@pytest.mark.parametrize(("what", "most"), [("rule", 10), ("factor", 40)])
def test_it_takes_as_few_lines_as_it_says(what: str, most: int) -> None:
    assert 3 < len(marked(what)) <= most


@pytest.fixture
def page() -> dict[str, Any]:
    """The page's definitions, with their rules registered."""
    space: dict[str, Any] = {}
    for block in blocks()[:-1]:
        exec(compile(block, str(PAGE), "exec"), space)
    yield space
    for name in list(CUSTOM):
        extend.unregister_rule(name)


def losses_of(page: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    scale, kernel = (torch.rand(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    first = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    hidden = page["Scaled"].apply(page["Cube"].apply(torch.randn(4, 5, dtype=torch.float64) @ first), scale)
    return page["Circular"].apply(page["Circular"].apply(hidden, kernel), kernel), [first, scale, kernel]


def test_the_factor_serves_everything_that_is_made_of_a_jacobian(page: dict[str, Any]) -> None:
    """Two uses of one kernel, so that there are cross terms; two losses per sample, so that there are stacked rows."""
    out, parameters = losses_of(page)
    losses = torch.stack([out.square().sum(1), out.sin().sum(1)])
    expected = oracle_gramian(losses, parameters)
    assert_close_gramian(gramjd.gramian(losses, parameters), expected, 1e-12)
    assert_close_gramian(gramjd.gramian(losses, parameters, other=losses), expected, 1e-12)
    norms = gramjd.gradient_norms(losses, parameters)
    torch.testing.assert_close(norms.square(), expected.diagonal())
    shares = gramjd.gramian(losses, parameters, per_parameter=True)
    assert_close_gramian(sum(shares.values()), expected, 1e-12)
    w = torch.linspace(-1, 1, 8, dtype=torch.float64)
    gramjd.gram_backward(losses, lambda G: w, inputs=parameters, update="reuse")
    again, fresh = losses_of(page)
    total = (torch.stack([again.square().sum(1), again.sin().sum(1)]).reshape(-1) * w).sum()
    for mine, gradient in zip(parameters, torch.autograd.grad(total, fresh), strict=True):
        torch.testing.assert_close(mine.grad, gradient)


def test_a_plan_calls_no_function_of_a_rule(page: dict[str, Any]) -> None:
    out, parameters = losses_of(page)
    plan = gramjd.explain(out.square().sum(1), parameters)
    assert plan.dense == ()
    assert [use.route for use in plan.uses if use.operation == "CircularBackward"] == ["rows", "rows"]


def test_a_rule_that_computes_is_told() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 2 * g

    @extend.register_rule("DoubledBackward")
    @extend.each
    def doubled(node: extend.NodeView, c: extend.Cotangent) -> extend.Sends:
        values = 2 * c.values
        yield node.send(0, c.layout, lambda: values)

    try:
        p = torch.rand(3, requires_grad=True)
        with pytest.raises(RuleError, match=r"DoubledBackward.*outside of what it sends"):
            gramjd.explain(Doubled.apply(p.exp()))
    finally:
        extend.unregister_rule("DoubledBackward")


def test_unregister() -> None:
    before = TABLE["MulBackward0"]
    extend.register_rule("MulBackward0", extend.dense_fallback, replace=True)
    extend.register_rule("MulBackward0", extend.pointwise, replace=True)
    extend.unregister_rule("MulBackward0")
    assert TABLE["MulBackward0"] is before
    with pytest.raises(RuleError, match="'MulBackward0' has no rule of register_rule; those are: none"):
        extend.unregister_rule("MulBackward0")
    extend.register_rule("CubeBackward", extend.per_sample)
    extend.unregister_rule("CubeBackward")
    assert "CubeBackward" not in TABLE


def test_a_rule_that_was_taken_away_is_not_used_again() -> None:
    """Nor are plans that were made with it."""
    x = torch.rand(4, 3)

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x - x.mean(0)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g - g.mean(0)

    p = torch.rand(3, 2, requires_grad=True)

    def losses() -> Tensor:
        return Mixed.apply(x @ p).square().sum(1)

    extend.register_rule("MixedBackward", extend.per_sample)  # a wrong claim
    wrong = [gramjd.gramian(losses()) for _ in range(2)]
    extend.unregister_rule("MixedBackward")
    with pytest.warns(gramjd.errors.DenseRowsWarning):
        right = gramjd.gramian(losses())
    assert_close_gramian(right, oracle_gramian(losses()), 1e-5)
    assert not any(torch.allclose(G, right) for G in wrong)
