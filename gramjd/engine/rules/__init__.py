"""The rule table: from the name of a backward node to what it does with stacked rows. One file a family of nodes."""

from __future__ import annotations

from collections.abc import Callable

from gramjd.engine.graph import Graph, Node
from gramjd.engine.node import Rule
from gramjd.engine.rules import (
    convolution,
    copies,
    indexing,
    matmul,
    norms,
    parallel,
    pointwise,
    recurrent,
    reductions,
    views,
)
from gramjd.engine.rules.vocabulary import dense_fallback
from gramjd.errors import RuleError

ISOMETRIES = views.ISOMETRIES

TABLE: dict[str, Rule] = {
    **pointwise.RULES,
    **views.RULES,
    **reductions.RULES,
    **matmul.RULES,
    **convolution.RULES,
    **norms.RULES,
    **indexing.RULES,
    **copies.RULES,
    **recurrent.RULES,
    **parallel.RULES,
}


# Names whose rule is a user's.
CUSTOM: set[str] = set()


def rule_for(graph: Graph, node: Node) -> Rule:
    """The node's rule; a node without one, or with hooks, is handled as dense_fallback: dense rows, always right."""
    return dense_fallback if node in graph.hooks.nodes else TABLE.get(graph.names[node], dense_fallback)


def register_rule(name: str, rule: Rule | None = None, *, replace: bool = False) -> Callable[[Rule], Rule]:
    """Teach the walk a node: `register_rule("CubeBackward", pointwise)`, or decorate a function of a `NodeView`.

    Args:
        name: what `tensor.grad_fn.name()` says (a custom function called `Cube` has the node `CubeBackward`).
        rule: a function that takes the `NodeView` of a node and sends a cotangent to each of its inputs. The definers in
            `gramjd.engine.rules.vocabulary` make one from an algebraic fact: `pointwise`, `through`, `permuted`,
            `all_but`, `leading`, `carried`, `reduction`, `dense_fallback`.
        replace: allow a node that has a rule.

    Raises:
        RuleError: the name has a rule already, or is no node's name, or the rule cannot be called.

    >>> from gramjd.engine.rules.vocabulary import pointwise
    >>> _ = register_rule("MyActivationBackward", pointwise)
    >>> "MyActivationBackward" in TABLE
    True
    """
    if not isinstance(name, str) or "Backward" not in name:
        raise RuleError(f"{name!r} is not the name of a backward node; take it from `tensor.grad_fn.name()`")
    if name in TABLE and not replace:
        raise RuleError(f"{name} has a rule already; pass replace=True to put another in its place")

    def add(function: Rule) -> Rule:
        if not callable(function):
            raise RuleError(f"a rule is a function of a NodeView; got a {type(function).__name__}")
        TABLE[name] = function
        CUSTOM.add(name)
        return function

    if rule is not None:
        add(rule)
    return add
