"""Aggregators that combine gradients number by number: no function of the Gramian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from gramjd.aggregation._check import check_jacobian
from gramjd.errors import AggregatorError


class Coordinatewise(ABC):
    """An update whose entry k depends on column k of the Jacobian only.

    So J need never exist as a whole: `combine` is applied to parts of its columns, parameter after parameter, and what
    it returns does not depend on where one part ends and the next begins.
    """

    # What `scale_free` says; None: nothing is stated.
    _scale_free: ClassVar[bool | None] = None

    @property
    def scale_free(self) -> bool | None:
        """True if the update for `s J` is `s` times that for `J`, for every s > 0, up to rounding; None: not stated."""
        return self._scale_free

    def combine(self, columns: Tensor) -> Tensor:
        """The entries [d] of the update for d columns of the Jacobian, `columns` [m, d]; in its dtype, on its device.

        Raises:
            AggregatorError: `columns` is no matrix, real floating point and finite, or has too few rows.
        """
        check_jacobian(columns)
        self._check_rows(len(columns))
        # Sums of 16-bit numbers need more than 16 bits.
        wide = columns.detach().to(torch.promote_types(columns.dtype, torch.float32))
        if not bool(torch.isfinite(wide).all()):
            bad = int((~torch.isfinite(wide)).sum())
            raise AggregatorError(
                f"the gradients must be finite; {bad} of {wide.numel()} numbers in columns {list(wide.shape)} are"
                " not. Look for an overflow or a NaN in the losses or their gradients"
            )
        if not columns.numel():
            return columns.new_zeros(columns.shape[1])
        return self._combine(wide).to(columns.dtype)

    def aggregate(self, J: Tensor) -> Tensor:
        """The update [n] for a whole Jacobian `J` [m, n]: for study."""
        return self.combine(J)

    def __call__(self, G: Tensor) -> NoReturn:
        """Raise: a Gramian does not hold what is needed."""
        name = type(self).__name__
        raise AggregatorError(
            f"{name} combines the gradients number by number, so the Gramian is not enough: pass it to gram_backward,"
            f" or call {name}.aggregate(J)"
        )

    @abstractmethod
    def _combine(self, columns: Tensor) -> Tensor:
        """The update [d] for a finite `columns` [m, d] of at least 32 bits, neither m nor d zero."""

    def _check_rows(self, m: int) -> None:  # noqa: B027
        """Raise unless m gradients can be combined. By default any number can."""

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"{type(self).__name__}()"
