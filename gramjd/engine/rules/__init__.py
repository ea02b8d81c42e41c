"""The rule table: from the name of a backward node to what it does with stacked rows. One file a family of nodes."""

from __future__ import annotations

from collections.abc import Callable

from gramjd.engine.graph import Node
from gramjd.engine.rules import attention, convolution, index, linear, norm, pointwise, reduce, shape
from gramjd.engine.rules.vocabulary import Rule, opaque
from gramjd.errors import InputError

ISOMETRIES = shape.ISOMETRIES

TABLE: dict[str, Rule] = {
    **pointwise.RULES,
    **shape.RULES,
    **reduce.RULES,
    **linear.RULES,
    **convolution.RULES,
    **norm.RULES,
    **index.RULES,
    **attention.RULES,
}


def rule_for(node: Node) -> Rule:
    """The node's rule; a node without one is handled as opaque: dense rows, always right."""
    return TABLE.get(node.name(), opaque)


def register_rule(name: str, rule: Rule | None = None) -> Callable[[Rule], Rule]:
    """Add a rule for the backward node called `name`."""
    raise InputError("unfinished")
