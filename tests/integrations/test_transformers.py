"""`GramTrainerMixin` inside the Trainer: parameters after some steps, beside a loop written by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gramjd
from gramjd.errors import InputError
from gramjd.integrations.transformers import GramTrainerMixin, per_sequence
from gramjd.profiling import GramMonitor
from tests.ranks import run_ranks

transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
accelerate = pytest.importorskip("accelerate", reason="needs the extra `transformers`")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore:.*use_cache.*"),
]
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _state_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases keep the precision of one Trainer for the next."""
    accelerate.state.AcceleratorState._reset_state(True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


V, T, RATE = 17, 7, 0.5


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        pad_token_id=0,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def with_lora(dropout: float = 0.0) -> Any:
    peft = pytest.importorskip("peft", reason="needs the extra `transformers`")
    model = llama()
    given = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    torch.manual_seed(1)
    return peft.get_peft_model(model, given)


def sentences(count: int = 24) -> list[dict[str, Tensor]]:
    """Token sequences, padded at the end; one of them is all padding but for its first token, which has no label."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for n in range(count):
        ids = torch.randint(1, V, (T,), generator=generator)
        length = 1 if n == 3 else int(torch.randint(3, T + 1, (), generator=generator))
        mask = (torch.arange(T) < length).long()
        found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.where(mask > 0, ids, -100)})
    return found


def arguments(folder: Path, **options: Any) -> Any:
    given = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    return transformers.TrainingArguments(**(given | options))


class Recorded(GramTrainerMixin, transformers.Trainer):
    """Notes each batch, and random numbers as they are before the model sees it."""

    def gram_losses(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.batches = [
            *getattr(self, "batches", []),
            ({k: v.clone() for k, v in inputs.items()}, torch.get_rng_state()),
        ]
        return super().gram_losses(model, inputs)


def sequence_losses(model: Any, batch: dict[str, Tensor], smoothing: float) -> Tensor:
    """One sequence at a time, one token at a time."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    found = []
    for row, labels in zip(logits, batch["labels"], strict=True):
        logs = row.log_softmax(-1)
        each = [
            -(1 - smoothing) * logs[t - 1, labels[t]] - smoothing * logs[t - 1].mean()
            for t in range(1, len(labels))
            if labels[t] != -100
        ]
        found.append(torch.stack(each).mean() if each else 0 * row.sum())
    return torch.stack(found)


def by_hand(
    model: Any,
    batches: list[tuple[dict[str, Tensor], Tensor]],
    args: Any,
    descend: Callable[[Tensor, Any], object],
) -> list[Tensor]:
    """Parameters after the same batches in a bare loop."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    model.train()
    steps = args.gradient_accumulation_steps
    for n, (batch, state) in enumerate(batches):
        torch.set_rng_state(state)  # for dropout
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            losses = sequence_losses(model, batch, args.label_smoothing_factor)
        descend(losses / steps, trained)
        if (n + 1) % steps == 0:
            if args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in trained]


def jacobian(losses: Tensor, trained: list[Tensor]) -> None:
    gramjd.gram_backward(losses, inputs=trained)


def mean(losses: Tensor, trained: list[Tensor]) -> None:
    losses.mean().backward(inputs=trained)


def distance(a: list[Tensor], b: list[Tensor], start: list[Tensor]) -> float:
    """How far parameters lie apart, relative to how far they have come."""
    gap, way = (sum(float((x - y).square().sum()) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (start, b)))
    return (gap / way) ** 0.5


def trained_parameters(model: Any) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


CHECKPOINTS = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
SETTINGS: dict[str, tuple[Callable[[], Any], dict[str, Any], float]] = {
    "plain": (llama, {}, 1e-4),
    "smoothing": (llama, {"label_smoothing_factor": 0.2}, 1e-4),
    "accumulation": (llama, {"gradient_accumulation_steps": 2}, 1e-4),
    "clipping": (llama, {"max_grad_norm": 0.05}, 1e-4),
    # Both round to bfloat16 (2^-8), the loss in another order of sums.
    "bf16": (llama, {"bf16": True}, 5e-2),
    "lora": (with_lora, {}, 1e-4),
    "lora, checkpoints": (with_lora, CHECKPOINTS, 1e-4),
    "lora, checkpoints, dropout, accumulation, smoothing, clipping": (
        lambda: with_lora(0.3),
        CHECKPOINTS | {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1, "max_grad_norm": 0.05},
        1e-4,
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_after_three_steps(name: str, tmp_path: Path) -> None:
    make, options, limit = SETTINGS[name]
    args = arguments(tmp_path, **options)
    model = make()
    start = trained_parameters(model)
    trainer = Recorded(model=model, args=args, train_dataset=sentences())
    trainer.train()
    assert len(trainer.batches) == 3 * args.gradient_accumulation_steps
    expected = by_hand(make(), trainer.batches, args, jacobian)
    assert distance(trained_parameters(model), expected, start) < limit
    # Where the integration is left out the result is another one.
    assert distance(by_hand(make(), trainer.batches, args, mean), expected, start) > 2 * limit


def test_the_gramian_is_that_of_the_trained_parameters(tmp_path: Path) -> None:
    """With checkpoints the output of the embedding requires grad: a leaf that belongs in no Gramian."""
    model = with_lora()
    trainer = Recorded(model=model, args=arguments(tmp_path, max_steps=1, **CHECKPOINTS), train_dataset=sentences())
    trainer.train()
    fresh = with_lora()
    losses = sequence_losses(fresh, trainer.batches[0][0], 0.0)
    expected = gramjd.gramian(losses, fresh)
    torch.testing.assert_close(trainer.gram_step.gramian, expected, rtol=1e-4, atol=1e-6)


def test_the_monitor_is_in_the_logs(tmp_path: Path) -> None:
    class Watched(Recorded):
        gram_monitor = GramMonitor()
        gram_aggregator = gramjd.MGDA()

    trainer = Watched(model=llama(), args=arguments(tmp_path), train_dataset=sentences())
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    assert lines[-1]["gramjd/largest_norm"] == pytest.approx(trainer.gram_monitor.latest()["largest_norm"])
    assert trainer.gram_monitor.steps == [0, 1, 2]
    first = float(sequence_losses(llama(), trainer.batches[0][0], 0.0).detach().mean())
    assert lines[0]["loss"] == pytest.approx(first, rel=1e-3)  # the first step begins with that model


def test_an_aggregator_that_is_not_scale_free_sees_the_losses_themselves(tmp_path: Path) -> None:
    class Nash(Recorded):
        gram_aggregator = gramjd.NashMTL()

    args = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=2)
    model = llama()
    start = trained_parameters(model)
    trainer = Nash(model=model, args=args, train_dataset=sentences()[4:])
    trainer.train()
    expected = by_hand(
        llama(),
        trainer.batches,
        args,
        lambda losses, trained: gramjd.gram_backward(losses, gramjd.NashMTL(), inputs=trained, scale=0.5),
    )
    assert distance(trained_parameters(model), expected, start) < 1e-3


def test_evaluation_is_the_trainers_own(tmp_path: Path) -> None:
    data = sentences()
    trainers = [
        kind(model=llama(), args=arguments(tmp_path), train_dataset=data, eval_dataset=data[:8])
        for kind in (Recorded, transformers.Trainer)
    ]
    found = [trainer.evaluate()["eval_loss"] for trainer in trainers]
    assert found[0] == pytest.approx(found[1])


def test_losses_of_ones_own(tmp_path: Path) -> None:
    class Tokens(Recorded):
        def gram_losses(self, model: Any, inputs: dict[str, Any]) -> Tensor:
            super().gram_losses(model, inputs)
            return model(inputs["input_ids"]).logits.square().mean((1, 2))

    trainer = Tokens(model=llama(), args=arguments(tmp_path, max_steps=1), train_dataset=sentences())
    trainer.train()
    model = llama()
    expected = gramjd.gramian(model(trainer.batches[0][0]["input_ids"]).logits.square().mean((1, 2)))
    torch.testing.assert_close(trainer.gram_step.gramian, expected, rtol=1e-4, atol=1e-6)


def test_heads_that_do_not_shift() -> None:
    logits, labels = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    labels[0, 1:] = -100
    expected = F.cross_entropy(logits[0, 0], labels[0, 0])
    torch.testing.assert_close(per_sequence(logits, labels, 0.0, False)[0], expected)
    torch.testing.assert_close(
        per_sequence(logits[:, 0], labels[:, 0], 0.1, False),
        F.cross_entropy(logits[:, 0], labels[:, 0], reduction="none", label_smoothing=0.1),
    )


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"logits \(3, 1\) and labels \(3,\) \(torch.float32\): override gram_losses"):
        per_sequence(torch.randn(3, 1), torch.randn(3), 0.0, False)
    trainer = Recorded(model=llama(), args=arguments(tmp_path), train_dataset=sentences())
    with pytest.raises(InputError, match="no labels, only"):
        trainer.gram_losses(trainer.model, {"input_ids": torch.ones(1, 2, dtype=torch.long)})
    with pytest.raises(InputError, match="learning_rate"):
        trainer.gram_descend(torch.ones(()), learning_rate=0.1)


def test_a_fine_tuning_of_a_tiny_llama(tmp_path: Path) -> None:
    """LoRA with checkpoints through the Trainer, 60 steps: the loss falls, parameters are those of the bare loop."""
    args = arguments(tmp_path, max_steps=60, **CHECKPOINTS)
    model = with_lora()
    start = trained_parameters(model)
    trainer = Recorded(model=model, args=args, train_dataset=sentences()[4:])
    trainer.train()
    expected = by_hand(with_lora(), trainer.batches, args, jacobian)
    assert distance(trained_parameters(model), expected, start) < 1e-2
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(logged[-10:]) < 0.985 * sum(logged[:10])


def ranks(together: bool, folder: str) -> None:
    """One of two processes: parameters are those of one process with both batches, or of the mean of two updates."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else int(os.environ["RANK"])
    data = [one for n, one in enumerate(sentences()) if n != 3]
    order = list(range(16))

    class Ordered(Recorded):
        gram_ranks = together

        def get_train_dataloader(self) -> Any:
            own = [data[k] for k in order[rank::2]]
            return torch.utils.data.DataLoader(own, batch_size=4, collate_fn=transformers.default_data_collator)

    trainer = Ordered(model=llama(), args=arguments(Path(folder), max_steps=2), train_dataset=data)
    trainer.train()
    mine, net = trainer.model, llama()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for step in range(2):
        parts = []
        for half in range(2):
            batch = [data[k] for k in order[half::2]][4 * step : 4 * step + 4]
            parts.append(sequence_losses(net, transformers.default_data_collator(batch), 0.0))
        optimizer.zero_grad()
        for losses in [torch.cat(parts)] if together else [part / 2 for part in parts]:
            gramjd.gram_backward(losses, retain_graph=True)
        optimizer.step()
    for p, q in zip(mine.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_two_processes(together: bool, tmp_path: Path) -> None:
    code = f"from tests.integrations.test_transformers import ranks; ranks({together}, {str(tmp_path)!r})"
    run_ranks(2, ["-c", code], 300, {"PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"})
