"""`GramMixin` inside Lightning: parameters after three steps, beside a loop written by hand."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gramjd
from gramjd.errors import InputError, LossError
from gramjd.integrations.lightning import GramMixin
from gramjd.profiling import GramMonitor
from tests.ranks import run_ranks

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra `lightning`")
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*litlogger.*"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
LABELS = torch.arange(6) % 3
BATCHES = [
    (torch.randn(6, 5, generator=torch.Generator().manual_seed(k)) + 2 * F.one_hot(LABELS, 5), LABELS)
    for k in range(40)
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def losses_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(net(x), y, reduction="none")


class Bare(lightning.LightningModule):
    """What it is without the mixin."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return losses_of(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class Model(GramMixin, Bare):
    pass


class Manual(Model):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(losses_of(self.net, batch))
        optimizer.step()


def fitted(model: Any, batches: int = 3, **options: Any) -> Any:
    loader = torch.utils.data.DataLoader(BATCHES[:batches], batch_size=None)
    defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(**(defaults | options))
        trainer.fit(model, loader)
    return trainer


def by_hand(
    descend: Callable[[Tensor], object] = gramjd.gram_backward,
    batches: int = 3,
    accumulate: int = 1,
    clip: float | None = None,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Parameters after the same steps in a bare loop."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for n, batch in enumerate(BATCHES[:batches]):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            losses = losses_of(net, batch)
        descend(losses / accumulate)
        if (n + 1) % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in net.parameters()]


def parameters(model: Any) -> list[Tensor]:
    return [p.detach() for p in model.net.parameters()]


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """How far parameters lie apart, relative to how far they have come."""
    start = [p.detach() for p in network().parameters()]
    gap, way = (sum(float((x - y).square().sum()) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (start, b)))
    return (gap / way) ** 0.5


SETTINGS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "automatic": (Model, {}, {}),
    "manual": (Manual, {}, {}),
    "accumulation": (Model, {"accumulate_grad_batches": 2, "batches": 6}, {"accumulate": 2, "batches": 6}),
    "clipping": (Model, {"gradient_clip_val": 0.1}, {"clip": 0.1}),
    "bf16-mixed": (Model, {"precision": "bf16-mixed"}, {"dtype": torch.bfloat16}),
    "bf16-mixed, accumulation, clipping": (
        Model,
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.2, "batches": 6},
        {"dtype": torch.bfloat16, "accumulate": 2, "clip": 0.2, "batches": 6},
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_after_three_steps(name: str) -> None:
    kind, options, same = SETTINGS[name]
    model = kind()
    fitted(model, **options)
    assert distance(parameters(model), by_hand(**same)) < 1e-5
    # Where the mixin is left out there is an error, or another result: the reference tells them apart.
    assert distance(by_hand(lambda L: L.mean().backward(), **same), by_hand(**same)) > 1e-2


def test_a_training_in_bfloat16_with_accumulation() -> None:
    """40 batches in 20 steps: the loss falls, parameters are those of the bare loop."""
    model = Model()
    fitted(model, batches=40, precision="bf16-mixed", accumulate_grad_batches=2)
    assert distance(parameters(model), by_hand(batches=40, accumulate=2, dtype=torch.bfloat16)) < 1e-4
    with torch.no_grad():
        before, after = (
            torch.stack([losses_of(net, batch).mean() for batch in BATCHES]).mean() for net in (network(), model.net)
        )
    assert after < 0.8 * before


def test_without_the_mixin_lightning_raises() -> None:
    with pytest.raises(RuntimeError, match="scalar outputs"):
        fitted(Bare())


@pytest.mark.parametrize("aggregator", [gramjd.UPGrad(), gramjd.NashMTL()], ids=repr)
def test_float16_with_a_scaler(aggregator: Callable[[Tensor], Tensor]) -> None:
    """Also for an aggregator whose weights depend on the scale: it never sees the factor."""

    class Half(Model):
        gram_aggregator = staticmethod(aggregator)

    model = Half()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    fitted(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    expected = by_hand(lambda L: gramjd.gram_backward(L, aggregator), dtype=torch.float16)
    # Gradients are rounded to float16 in activations, at another scale.
    assert distance(parameters(model), expected) < 2e-2


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    model = Model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    fitted(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    torch.testing.assert_close(parameters(model), [p.detach() for p in network().parameters()], rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**27


def test_accumulation_with_an_aggregator_that_is_not_scale_free() -> None:
    class Nash(Model):
        gram_aggregator = gramjd.NashMTL()

    model = Nash()
    fitted(model, batches=6, accumulate_grad_batches=2)
    expected = by_hand(lambda L: gramjd.gram_backward(L, gramjd.NashMTL(), scale=0.5), batches=6, accumulate=2)
    assert distance(parameters(model), expected) < 1e-5


def test_reuse_is_the_same() -> None:
    class Reuse(Model):
        gram_options = {"update": "reuse"}  # noqa: RUF012

    model = Reuse()
    fitted(model)
    assert distance(parameters(model), by_hand()) < 1e-5


def test_the_monitor_sees_and_logs(tmp_path: Path) -> None:
    class Watched(Model):
        gram_names = [f"sample {k}" for k in range(6)]  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.gram_monitor = GramMonitor()
            self.seen: list[dict[str, float]] = []

        def on_train_batch_end(self, *args: Any) -> None:
            self.seen.append({k: float(v) for k, v in self.trainer.callback_metrics.items()})

    model = Watched()
    fitted(model)
    assert model.gram_monitor.steps == [0, 1, 2]
    assert model.gram_step.names == tuple(Watched.gram_names)
    assert model.seen[-1]["gramjd/mean_norm"] == pytest.approx(model.gram_monitor.latest()["mean_norm"])
    assert "gramjd/weight/sample 3" in model.seen[-1]


def test_what_is_no_vector_is_refused() -> None:
    class Mean(Model):
        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return super().training_step(batch, index).mean()

    with pytest.raises(LossError, match="training_step returned a scalar"):
        fitted(Mean())

    class Short(Model):
        gram_names = ["a", "b"]  # noqa: RUF012

    with pytest.raises(InputError, match=r"\['a', 'b'\] for 6 losses"):
        fitted(Short())

    class Weighted(Manual):
        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            losses = losses_of(self.net, batch)
            self.manual_backward(losses, torch.ones_like(losses))

    with pytest.raises(InputError, match="retain_graph alone"):
        fitted(Weighted())


def ddp(manual: bool, together: bool = False) -> None:
    """One of two processes: parameters are those of the mean of both processes' updates, or of their joint one."""
    rank = int(os.environ["RANK"])
    model = (Manual if manual else Model)()
    model.gram_ranks = together

    class Halves(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 6

        def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
            return BATCHES[k]

    sampler = torch.utils.data.DistributedSampler(Halves(), num_replicas=2, rank=rank, shuffle=False)
    loader = torch.utils.data.DataLoader(Halves(), batch_size=None, sampler=sampler)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for first in range(0, 6, 2):
        optimizer.zero_grad()
        pair = BATCHES[first : first + 2]
        if together:
            gramjd.gram_backward(torch.cat([losses_of(net, batch) for batch in pair]))
        for batch in () if together else pair:
            gramjd.gram_backward(losses_of(net, batch) / 2)
        optimizer.step()
    assert distance(parameters(model), [p.detach() for p in net.parameters()]) < 1e-5


def sharded() -> None:
    """One of two processes of a model that Lightning's strategy for it shards by FSDP."""
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    rank = int(os.environ["RANK"])

    class Sharded(Model):
        gram_ranks = True

        def configure_model(self) -> None:
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    model = Sharded()
    loader = torch.utils.data.DataLoader(BATCHES[rank:6:2], batch_size=None)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=1,
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for first in range(0, 6, 2):
        optimizer.zero_grad()
        gramjd.gram_backward(torch.cat([losses_of(net, batch) for batch in BATCHES[first : first + 2]]))
        optimizer.step()
    found = [p.detach().full_tensor() for p in model.net.parameters()]
    assert distance(found, [p.detach() for p in net.parameters()]) < 1e-5


def test_two_processes_sharded() -> None:
    known = {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "PYTHONWARNINGS": "ignore"}
    run_ranks(2, ["-c", "from tests.integrations.test_lightning import sharded; sharded()"], 300, known)


@pytest.mark.parametrize("given", ["False", "True", "False, True"], ids=["automatic", "manual", "together"])
def test_two_processes(given: str) -> None:
    # As torchrun sets them, so that Lightning starts no processes of its own.
    known = {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "PYTHONWARNINGS": "ignore"}
    run_ranks(2, ["-c", f"from tests.integrations.test_lightning import ddp; ddp({given})"], 300, known)
