"""What a rule sent, with everything about it decided: all invariants of what rules return are checked here."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.engine.cotangent import Cotangent, reduce_to
from gramjd.engine.factor import Factor
from gramjd.engine.isometry import View
from gramjd.engine.node import NodeView, Send, SendFactor
from gramjd.errors import RuleError


class Delivery:
    """A `Send` with everything about it decided: layout and shape of what the edge's target receives."""

    __slots__ = ("_expected", "_result", "_slot", "edge", "name", "nbytes", "send", "sums", "target")

    def __init__(self, view: NodeView, send: Send) -> None:
        self.send, self.edge, self.name = send, send.edge, view.name
        self.target = view.input(send.edge)
        shape = self.target.shape if send.shape is None else send.shape
        if math.prod(p.size for p in send.layout.pieces) != math.prod(shape):
            raise RuleError(f"the rule of {view.name} returned a layout for another size than {tuple(shape)}")
        self._slot = Cotangent(send.layout, shape, self.target.dtype)
        self.nbytes = self._slot.stacked_bytes
        self._expected = (send.layout.stacked, *shape)
        self._result = reduce_to(self._slot, self.target.shape, view.charge)
        layout = self._result.layout
        self.sums = layout.losses > 1 and not layout.diagonal and (send.sums or send.layout.diagonal)

    @property
    def numel(self) -> int:
        """Numbers in all rows that are computed."""
        return self._slot.numel

    def planned(self) -> Cotangent:
        """What the target receives, without values."""
        return Cotangent(
            self._result.layout, self.target.shape, self.target.dtype, operation=self.name, donated=self.send.donated
        )

    def computed(self, values: Tensor | None) -> Cotangent | None:
        """What the target receives, from what the rule computed."""
        if values is None:
            return None
        slot, target = self._slot, self.target
        if values.dtype is not target.dtype or values.dtype.is_complex or values.layout is not torch.strided:
            values = _cast(values, target.dtype)
        if values.shape != self._expected:
            values = self._summed_down(values, self._expected)
        if self._result is not slot:
            slot.put(values)
            values = self._result.values
            slot.drop()
        return Cotangent(
            self._result.layout, target.shape, target.dtype, values, operation=self.name, donated=self.send.donated
        )

    def _summed_down(self, values: Tensor, expected: tuple[int, ...]) -> Tensor:
        """Dense rows may come in a shape that is broadcast from the target's."""
        lead = values.ndim - len(expected)
        dense = not self.send.layout.diagonal and self.send.shape is None
        if dense and lead >= 0 and len(values) == expected[0]:
            padded = (expected[0], *([1] * lead), *expected[1:])
            if all(n in (1, have) for n, have in zip(padded, values.shape, strict=True)):
                return values.sum_to_size(padded).reshape(expected)
        raise RuleError(
            f"the rule of {self.name} returned shape {tuple(values.shape)} for input {self.edge}; expected {expected} "
            "(stacked rows first)"
        )


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    if values.layout != torch.strided:
        values = values.to_dense()
    if values.is_complex():
        # A lazy conjugate cannot be viewed as real numbers, which is how its products are formed.
        values = values.resolve_conj() if dtype.is_complex else values.real
    return values if values.dtype == dtype else values.to(dtype)


class FactorDelivery:
    """A `SendFactor` on its way to a parameter of the shape that the edge leads to."""

    __slots__ = ("_view", "edge", "name", "send")

    def __init__(self, view: NodeView, send: SendFactor) -> None:
        self.send, self.edge, self.name = send, send.edge, view.name
        self._view = view.input(send.edge).shape

    def planned(self) -> Factor:
        """The factor without numbers."""
        return self._fitted(self.send.build(*(o.planned() for o in self.send.operands)))

    def computed(self) -> Factor:
        """The factor."""
        return self._fitted(self.send.build(*(o.compute() for o in self.send.operands)))

    def _fitted(self, factor: Factor) -> Factor:
        if math.prod(factor.shape) != math.prod(self._view):
            raise RuleError(
                f"the rule of {self.name} returned a factor of shape {factor.shape} for an input of shape {self._view}"
            )
        return factor if factor.shape == self._view else factor.through(View(None, self._view, factor.shape))
