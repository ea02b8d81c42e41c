"""Everything to teach gramjd an operation of your own.

A *rule* says what the inputs of a backward node receive from what arrived at its outputs. Most rules are one of the
definers, each an algebraic fact about the operation:

    pointwise       output element e depends on element e of each operand
    per_sample      the first dimension of every output and input is a batch, whose entries do not mix; parameters
                    are shared by all of them
    per_sample_but  the same, but some inputs that are no parameters are shared, too
    batch_leading   the first so many dimensions are apart
    mixing          some dimensions are mixed, the others stay apart
    apart           which output dimension is which input dimension, where they stay apart
    permuted        dimensions change places
    reshape_like    the gradient passes unchanged
    reduction       sum or mean over dimensions
    dense_fallback  nothing is known: one row per loss, always right

Another rule is a generator. It gets a `NodeView`, and for each cotangent (`@each` calls it once per cotangent) yields
what an edge receives: a layout, which says which loss owns which slice, and a function that computes the rows. Rules
decide by shapes and layouts and compute nothing themselves: a plan does not call the functions. Where an edge leads
straight to a parameter (`node.parametric`), `node.send_factor` sends a `Factor`, whose rows need never be multiplied
out: subclass it for a product of another form.

    @register_rule("ScaledBackward")  # y = x * scale, both saved
    @each
    def scaled(node, c):
        yield node.send(0, c.layout, lambda: c.values * node.saved_tensors[1])
        yield node.send(1, c.layout, lambda: c.values * node.saved_tensors[0], shape=c.shape)

Shapes: K stacked rows, b the length of a batch axis, R = K b rows, T positions. `c.values [K, *shape]`.
"""

from __future__ import annotations

from gramjd.engine.cotangent import Cotangent
from gramjd.engine.factor import Factor
from gramjd.engine.layout import Layout, carry, dense
from gramjd.engine.node import NodeView, Operand, Rule, Send, SendFactor, Sends
from gramjd.engine.rules import register_rule, unregister_rule
from gramjd.engine.rules.vocabulary import (
    apart,
    batch_leading,
    dense_fallback,
    each,
    mixing,
    permuted,
    pointwise,
    reduction,
    reshape_like,
)


def per_sample(node: NodeView) -> Sends:
    """The first dimension of every output and input is a batch, whose entries do not mix; parameters are shared."""
    lead: dict[int, int] = {0: 0}
    return apart(lambda v: [None if v.parametric(e) else lead for e in range(len(v.inputs))])(node)


def per_sample_but(*shared: int) -> Rule:
    """The same, where the inputs of these numbers are shared as well, such as a weight that is computed.

    >>> rule = per_sample_but(1)  # f(x, weight), whatever the weight is made of
    """
    return apart(lambda v: [None if e in shared or v.parametric(e) else {0: 0} for e in range(len(v.inputs))])


__all__ = [
    "Cotangent",
    "Factor",
    "Layout",
    "NodeView",
    "Operand",
    "Rule",
    "Send",
    "SendFactor",
    "Sends",
    "apart",
    "batch_leading",
    "carry",
    "dense",
    "dense_fallback",
    "each",
    "mixing",
    "per_sample",
    "per_sample_but",
    "permuted",
    "pointwise",
    "reduction",
    "register_rule",
    "reshape_like",
    "unregister_rule",
]
