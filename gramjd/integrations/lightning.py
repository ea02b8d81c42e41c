"""Lightning: `training_step` returns the vector of losses, and the backward pass is ours.

class Model(GramMixin, LightningModule):
    gram_aggregator = UPGrad()

    def training_step(self, batch, index):
        images, labels = batch
        return cross_entropy(self(images), labels, reduction="none")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gramjd.backward import Aggregator, gram_backward
from gramjd.errors import InputError, LossError
from gramjd.integrations._ranks import over_all
from gramjd.step import GramStep

if TYPE_CHECKING:
    from gramjd.profiling.monitor import GramMonitor


class GramMixin:
    """`LightningModule.backward` by `gram_backward`: stand it before `LightningModule` among the bases.

    `training_step` returns the losses [m] (or a dictionary with them under "loss"), not their mean: what Lightning does
    with it, division by `accumulate_grad_batches`, the scaling of `precision="16-mixed"`, clipping, gradients averaged
    by "ddp", then happens as ever. With automatic optimisation there is nothing else to do; with manual optimisation
    call `self.manual_backward(losses)`.

    Each micro-batch and each process has a Gramian of its own; their updates are averaged. With `gram_ranks = True`
    there is one Gramian over the losses of all processes (under "ddp"). The weights are those of the losses before
    Lightning divided and scaled them, for every aggregator.

    Attributes, of the class or of the object:
        gram_aggregator: as in `gram_backward`; default `UPGrad()`.
        gram_options: further options of `gram_backward`, such as `{"update": "reuse"}`.
        gram_ranks: True for one Gramian over the losses of all processes; `.grad` is then that of one process that has
            all of them.
        gram_names: the names of the losses in their order, one per element; may change with every batch.
        gram_monitor: a `GramMonitor` that sees every step. Its numbers are logged as `gramjd/NAME`, as often as the
            trainer logs (`log_every_n_steps`).
        gram_step: what the last step was made of.

    Raises:
        LossError: `training_step` returned a scalar, which is most often a mean by mistake.
        InputError: options of `backward` other than `retain_graph`; names that are not one per loss.
    """

    gram_aggregator: Aggregator | None = None
    gram_options: Mapping[str, Any] = {}
    gram_ranks: bool = False
    gram_names: Sequence[str] | None = None
    gram_monitor: GramMonitor | None = None
    gram_step: GramStep | None = None

    def backward(self, loss: Tensor, *args: Any, retain_graph: bool = False, **options: Any) -> None:
        """Called by Lightning with the losses that `training_step` returned, divided and scaled."""
        if args or options:
            raise InputError(f"backward got {[*args, *options]}: a step of gramjd takes retain_graph alone")
        if not loss.ndim:
            raise LossError(
                'training_step returned a scalar: return the vector of losses, with reduction="none", and log their '
                "mean beside it"
            )
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = 1.0 if scaler is None else scaler.get_scale()
        if self.automatic_optimization:  # type: ignore[attr-defined]
            factor /= trainer.accumulate_grad_batches
        ranks = over_all(trainer.strategy.model) if self.gram_ranks else {}
        given = {"nonfinite": "raise" if scaler is None else "pass", **ranks, **self.gram_options}
        self.gram_step = gram_backward(
            named(loss, self.gram_names), self.gram_aggregator, scale=factor, retain_graph=retain_graph, **given
        )
        if self.gram_monitor is not None and self.gram_step is not None:
            self.gram_monitor.update(self.gram_step)
            if trainer.log_every_n_steps and trainer.fit_loop.epoch_loop.batch_idx % trainer.log_every_n_steps == 0:
                numbers = {f"gramjd/{name}": number for name, number in self.gram_monitor.latest().items()}
                self.log_dict(numbers, batch_size=1)  # type: ignore[attr-defined]


def named(losses: Tensor, names: Sequence[str] | None) -> Tensor | dict[str, Tensor]:
    """The losses by name, if they have names."""
    if names is None:
        return losses
    if len(names) != losses.numel() or len(set(names)) < len(names):
        raise InputError(f"gram_names is {list(names)} for {losses.numel()} losses: give each a name of its own")
    return dict(zip(names, losses.reshape(-1).unbind(), strict=True))
