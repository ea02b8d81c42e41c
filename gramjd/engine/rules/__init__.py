"""The rule table: from the name of a backward node to what it does with stacked rows. One file a family of nodes."""

from __future__ import annotations

from collections.abc import Callable

from gramjd.engine.graph import Graph, Node
from gramjd.engine.node import Rule
from gramjd.engine.rules import (
    bags,
    convolution,
    copies,
    edits,
    grouped,
    indexing,
    linear_algebra,
    matmul,
    norms,
    parallel,
    pointwise,
    recurrent,
    reductions,
    regions,
    scattering,
    sparse,
    views,
)
from gramjd.engine.rules.vocabulary import dense_fallback
from gramjd.errors import RuleError

ISOMETRIES = views.ISOMETRIES

TABLE: dict[str, Rule] = {
    **pointwise.RULES,
    **views.RULES,
    **reductions.RULES,
    **linear_algebra.RULES,
    **matmul.RULES,
    **convolution.RULES,
    **norms.RULES,
    **indexing.RULES,
    **bags.RULES,
    **scattering.RULES,
    **sparse.RULES,
    **copies.RULES,
    **edits.RULES,
    **grouped.RULES,
    **recurrent.RULES,
    **parallel.RULES,
    **regions.RULES,
}


# Names whose rule is a user's, with the rule that it took the place of (None: there was none).
CUSTOM: dict[str, Rule | None] = {}


def rule_for(graph: Graph, node: Node) -> Rule:
    """The node's rule. One without a rule, or with hooks, gets dense rows, which are always right."""
    return dense_fallback if node in graph.hooks.nodes else TABLE.get(graph.names[node], dense_fallback)


def register_rule(name: str, rule: Rule | None = None, *, replace: bool = False) -> Callable[[Rule], Rule]:
    """Teach the walk a node: `register_rule("CubeBackward", pointwise)`, or decorate a rule.

    Args:
        name: what `tensor.grad_fn.name()` says (a custom function called `Cube` has the node `CubeBackward`).
        rule: a generator of a `NodeView` that yields what each input receives. The definers in `gramjd.extend` make one
            from an algebraic fact: `pointwise`, `per_sample`, `mixing`, `permuted`, `reduction`, ...
        replace: allow a node that has a rule.

    Returns:
        A decorator that registers a rule and returns it.

    Raises:
        RuleError: the name has a rule already, or is no node's name, or the rule cannot be called.

    >>> from gramjd.extend import pointwise, register_rule, unregister_rule
    >>> _ = register_rule("MyActivationBackward", pointwise)
    >>> unregister_rule("MyActivationBackward")
    """
    if not isinstance(name, str) or "Backward" not in name:
        raise RuleError(f"{name!r} is not the name of a backward node; take it from `tensor.grad_fn.name()`")
    if name in TABLE and not replace:
        raise RuleError(f"{name} has a rule already; pass replace=True to put another in its place")

    def add(function: Rule) -> Rule:
        if not callable(function):
            raise RuleError(f"a rule is a function of a NodeView; got a {type(function).__name__}")
        CUSTOM.setdefault(name, TABLE.get(name))
        TABLE[name] = function
        return function

    if rule is not None:
        add(rule)
    return add


def unregister_rule(name: str) -> None:
    """Take a rule of `register_rule` away again; a rule that it had replaced is back.

    Raises:
        RuleError: no rule of that name was registered.
    """
    if name not in CUSTOM:
        raise RuleError(f"{name!r} has no rule of register_rule; those are: {', '.join(sorted(CUSTOM)) or 'none'}")
    before = CUSTOM.pop(name)
    if before is None:
        del TABLE[name]
    else:
        TABLE[name] = before
