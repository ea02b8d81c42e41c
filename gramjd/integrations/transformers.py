"""Hugging Face's Trainer: one loss per sequence, and the backward pass is ours.

class GramTrainer(GramTrainerMixin, Trainer):
    gram_aggregator = UPGrad()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gramjd.backward import Aggregator, gram_backward
from gramjd.errors import InputError
from gramjd.extras import require
from gramjd.integrations._ranks import over_all
from gramjd.step import GramStep

if TYPE_CHECKING:
    from gramjd.profiling.monitor import GramMonitor

# Of accelerate: their backward passes are their own.
REFUSED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
IGNORED = -100


class GramTrainerMixin:
    """`Trainer.training_step` by `gram_backward`: stand it before `Trainer` among the bases.

    There is one loss per sequence: the mean cross-entropy over its own tokens, with the label smoothing of
    `TrainingArguments`; tokens labelled -100 do not count, and a sequence without others has the loss 0. Heads for
    causal language models shift the labels, others (classification of sequences or tokens, masked or translated text)
    do not. For anything else override `gram_losses`. Evaluation is the Trainer's own.

    Gradients are divided by the number of accumulation steps, each of which has a Gramian of its own, as has each
    process; with `gram_ranks = True` there is one over the losses of all processes. (The Trainer divides by the number
    of tokens in all of them; a mean per sequence is what makes sequences comparable.) Mixed precision, clipping,
    gradient checkpointing, LoRA and logging are the Trainer's. DeepSpeed, FSDP, Megatron and LOMO, which have backward
    passes of their own, are refused.

    Attributes, of the class or of the object:
        gram_aggregator: as in `gram_backward`; default `UPGrad()`.
        gram_options: further options of `gram_backward`, such as `{"update": "reuse"}`.
        gram_ranks: True for one Gramian over the losses of all processes; `.grad` is then that of one process that has
            all of them.
        gram_monitor: a `GramMonitor` that sees every step; its numbers are in the Trainer's logs as `gramjd/NAME`.
        gram_step: what the last step was made of.

    Raises:
        InputError: a kind of training that is refused; labels that there is no default loss for.
        MissingExtraError: transformers is not installed.
    """

    gram_aggregator: Aggregator | None = None
    gram_options: Mapping[str, Any] = {}
    gram_ranks: bool = False
    gram_monitor: GramMonitor | None = None
    gram_step: GramStep | None = None
    # The losses of a training step between its forward and its backward pass.
    gram_pending: Tensor | None = None

    def gram_losses(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """One loss per sequence, [m]: override it for losses of your own.

        Args:
            model: what is trained, as the Trainer calls it.
            inputs: a batch on its device, with labels.
        """
        trainer: Any = self
        if "labels" not in inputs:
            raise InputError(f"a batch has no labels, only {sorted(inputs)}: override gram_losses(model, inputs)")
        labels = inputs["labels"]
        bare = trainer.accelerator.unwrap_model(model)
        base = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
        # An encoder-decoder makes the input of its decoder from the labels.
        kept = getattr(base.config, "is_encoder_decoder", False)
        outputs = model(**{name: value for name, value in inputs.items() if kept or name != "labels"})
        return per_sequence(outputs["logits"], labels, trainer.args.label_smoothing_factor, shifts(type(base).__name__))

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        """While training the mean of the losses, for the log; else the Trainer's own."""
        trainer: Any = self
        if trainer.accelerator.backward != self.gram_descend:
            return super().compute_loss(model, inputs, *args, **options)  # type: ignore[misc]
        self.gram_pending = self.gram_losses(model, inputs)
        return self.gram_pending.detach().mean()

    def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Tensor:
        """The Trainer's step with our backward pass; returns the mean loss over the number of accumulation steps."""
        accelerator: Any = self.accelerator  # type: ignore[attr-defined]
        kind = getattr(accelerator.distributed_type, "name", str(accelerator.distributed_type))
        if kind in REFUSED:
            raise InputError(f"{kind} makes a backward pass of its own, which gramjd cannot take the place of")
        accelerator.backward = self.gram_descend
        try:
            super().training_step(model, inputs, *args, **options)  # type: ignore[misc]
            assert self.gram_pending is not None, "the backward pass came after the losses"
            return self.gram_pending.detach().mean() / self.gram_accumulation
        finally:
            del accelerator.backward
            self.gram_pending = None

    @property
    def gram_accumulation(self) -> int:
        """How many batches the present step of the optimizer adds up: fewer at the end of an epoch."""
        trainer: Any = self
        return int(getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps))

    def gram_descend(self, loss: Tensor, **options: Any) -> None:
        """What stands in place of `accelerator.backward` during a training step."""
        if options.keys() - {"scale_wrt_gas"}:
            raise InputError(f"the Trainer wants a backward pass with {sorted(options)}, such as LOMO's: not supported")
        trainer: Any = self
        assert self.gram_pending is not None, "the losses come before the backward pass"
        scaler = getattr(trainer.accelerator, "scaler", None)
        factor = (1.0 if scaler is None else scaler.get_scale()) / self.gram_accumulation
        given = {"inputs": trainer.model, "nonfinite": "raise" if scaler is None else "pass"}
        given |= over_all(trainer.model_wrapped) if self.gram_ranks else {}
        given |= self.gram_options
        self.gram_step = gram_backward(self.gram_pending * factor, self.gram_aggregator, scale=factor, **given)
        if self.gram_monitor is not None and self.gram_step is not None:
            self.gram_monitor.update(self.gram_step)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """The Trainer's log, with the monitor's numbers in the lines of training."""
        if self.gram_monitor is not None and "loss" in logs and self.gram_monitor.steps:
            logs |= {f"gramjd/{name}": number for name, number in self.gram_monitor.latest().items()}
        super().log(logs, *args, **options)  # type: ignore[misc]


def shifts(kind: str) -> bool:
    """Returns True if a class of models predicts the next token: its labels are those of the tokens themselves."""
    names = require("transformers.models.auto.modeling_auto", "transformers").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return kind in names.values()


def per_sequence(logits: Tensor, labels: Tensor, smoothing: float, shifted: bool) -> Tensor:
    """The mean cross-entropy over the tokens of each sequence, [m]; 0 for one whose labels are all -100.

    Args:
        logits: [m, T, C], or [m, C].
        labels: [m, T], or [m].
        smoothing: weight of the mean over all classes, 0 to 1.
        shifted: token t + 1 is the label of position t.

    >>> per_sequence(torch.zeros(2, 3, 4), torch.tensor([[0, 1, -100], [-100, -100, -100]]), 0.0, True)
    tensor([1.3863, 0.0000])
    """
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape or labels.ndim not in (1, 2):
        raise InputError(
            f"there is no loss for logits {tuple(logits.shape)} and labels {tuple(labels.shape)} ({labels.dtype}): "
            "override gram_losses(model, inputs)"
        )
    if labels.ndim == 1:
        logits, labels = logits[:, None], labels[:, None]
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = (labels != IGNORED).sum(1).clamp_min(1)
    scores = logits.float().transpose(1, 2)
    each = F.cross_entropy(scores, labels, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing)
    return each.sum(1) / counted
