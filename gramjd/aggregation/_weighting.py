"""What all aggregators of the Gramian share: a callable from it to weights, usable on a Jacobian for study."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from gramjd.aggregation._check import check_jacobian
from gramjd.errors import AggregatorError
from gramjd.renamed import WEIGHTING_WORDS, foreign_words


class Weighting(ABC):
    """An aggregator that works by weights: from the Gramian `G = J J^T`, [m, m], to `w`, [m], of the update `J^T w`."""

    # Where True, the aggregator is called with `(G, losses)`: see LossWeighting.
    takes_losses: ClassVar[bool] = False
    # What `scale_free` says; None: nothing is stated.
    _scale_free: ClassVar[bool | None] = None
    # Attributes that hold an option with one entry per loss, or None.
    _per_loss: ClassVar[tuple[str, ...]] = ()

    def _inner(self) -> tuple[object, ...]:
        """The aggregators that this one calls with the Gramian as it is."""
        return ()

    @property
    def scale_free(self) -> bool | None:
        """True if `w(s^2 G) = w(G)` for every s > 0, up to rounding: scaling all losses scales the update alone.

        With a past, for an s of each call: it may change between them. With losses, for `s` times the losses. False if
        that is not so for some G, None where nothing is stated, as for aggregators made of plain functions.

        >>> from gramjd.aggregation import NashMTL, UPGrad
        >>> UPGrad().scale_free, NashMTL().scale_free
        (True, False)
        """
        return self._scale_free

    def __init_subclass__(cls, **options: object) -> None:
        """Let the constructor name the right word for an argument of TorchJD's."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            named = foreign_words(WEIGHTING_WORDS, cls.__name__)
            cls.__init__ = named(cls.__init__)  # type: ignore[method-assign]  # the same signature

    @abstractmethod
    def __call__(self, G: Tensor) -> Tensor:
        """The weights [m] for the Gramian `G` [m, m], on its device; in its dtype, or float32 for a 16-bit `G`.

        The values of `G` are checked on a CPU. Elsewhere the host would wait for that, so what is no Gramian gives NaN
        instead of an error; aggregators for which the host waits in any case say so, and raise everywhere.
        """

    def aggregate(self, J: Tensor, losses: Tensor | None = None) -> Tensor:
        """`J^T W(J J^T)`, [n], for a Jacobian `J` [m, n]: for study, and for checking against the definition.

        Args:
            J: [m, n].
            losses: m values, for aggregators that take them.

        Raises:
            AggregatorError: `J` is no real floating-point matrix, or what the aggregator itself raises.
        """
        check_jacobian(J)
        return J.mT @ weigh(self, J @ J.mT, losses).to(J.dtype)

    def __repr__(self) -> str:
        """The call that makes this aggregator."""
        return f"{type(self).__name__}()"


def weights_dtype(G: Tensor) -> torch.dtype:
    """The dtype of weights for `G`: its own, but never a 16-bit one, which cannot hold `w >= u`."""
    return G.dtype if G.dtype in (torch.float32, torch.float64) else torch.float32


def weigh(weighting: Callable[..., Tensor], G: Tensor, losses: Tensor | None) -> Tensor:
    """The weights [m] that any function of G gives, or of G and the losses where it says that it takes them.

    Raises:
        AggregatorError: what came back is no tensor [m], or what the aggregator itself raises.
    """
    w = weighting(G, losses) if getattr(weighting, "takes_losses", False) else weighting(G)
    if not isinstance(w, Tensor) or w.shape != (len(G),):
        got = f"shape {list(w.shape)}" if isinstance(w, Tensor) else type(w).__name__
        raise AggregatorError(f"{weighting!r} must return weights of shape [{len(G)}]; got {got}")
    return w
