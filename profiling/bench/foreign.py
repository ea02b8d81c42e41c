"""Models that others wrote: a step over plain training, beside m plain passes and TorchJD.

    python -m gramjd.profiling.bench foreign --json profiling/results/foreign_cpu.json

(with `pip install timm transformers torch_geometric`; a model whose package is missing is left out). Weights are
random.
Measured as in `few`: in turns, CPU time of one thread, gramjd with PyTorch's products first, as all others have.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gramjd.errors import InputError
from gramjd.profiling.bench.cases import Case, work_on
from gramjd.profiling.bench.few import line, load, report, summary
from gramjd.profiling.bench.step import Contender, Prepared, gramian_difference, step_of
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.methods import RefusalError, said
from gramjd.profiling.target import Work
from gramjd.profiling.timing import interleave
from gramjd.text_table import aligned

CLASSES = 10
PACKAGES = ("torch", "gramjd", "torchjd", "timm", "transformers", "torch_geometric")
CONTENDERS = {
    "plain": Contender("plain"),
    "m passes": Contender("jacobian", "UPGrad"),
    "TorchJD": Contender("torchjd autogram", "UPGrad"),
    "gramjd, same products": Contender("gramjd", "UPGrad", "torch"),
    "gramjd reuse, same products": Contender("gramjd reuse", "UPGrad", "torch"),
    "gramjd": Contender("gramjd", "UPGrad", "auto"),
    "gramjd reuse": Contender("gramjd reuse", "UPGrad", "auto"),
}


# What TorchJD's engine is told: 0 where it takes that and gives the right Gramian, None for all else.
Dim = int | None


def _labelled(model: nn.Module, inputs: tuple[Tensor, ...], m: int, dim: Dim) -> Work:
    labels = torch.randint(CLASSES, (m,))
    return work_on(model, m, lambda: cross_entropy(model(*inputs), labels, reduction="none"), dim)


def _timm(name: str, size: int, dim: Dim, **options: Any) -> Callable[[int], Work]:
    def make(m: int) -> Work:
        model = import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES, **options)
        return _labelled(model.eval(), (torch.randn(m, 3, size, size),), m, dim)

    return make


def _language(kind: str, dim: Dim, length: int = 64, **options: Any) -> Callable[[int], Work]:
    """A causal language model: one loss per sequence."""

    def make(m: int) -> Work:
        transformers = import_module("transformers")
        config = transformers.AutoConfig.for_model(kind, vocab_size=1000, **options)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        tokens = torch.randint(1000, (m, length + 1))

        def losses() -> Tensor:
            logits = model(tokens[:, :-1], use_cache=False).logits
            return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

        return work_on(model, m, losses, dim)

    return make


def _bert(m: int) -> Work:
    transformers = import_module("transformers")
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    config = transformers.BertConfig(vocab_size=1000, num_labels=CLASSES, **sizes)
    model = transformers.BertForSequenceClassification(config).eval()
    tokens, labels = torch.randint(1000, (m, 64)), torch.randint(CLASSES, (m,))
    return work_on(model, m, lambda: cross_entropy(model(tokens).logits, labels, reduction="none"), None)


def _graphs(m: int) -> Work:
    """Graph attention over m graphs of 30 nodes, and a loss for each graph."""
    geometric = import_module("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = geometric.GATv2Conv(16, 32, heads=4), geometric.GATv2Conv(128, 32, heads=4)
            self.head = nn.Linear(128, CLASSES)

        def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
            x = self.second(self.first(x, edges).relu(), edges).relu()
            return self.head(geometric.global_mean_pool(x, batch, m))

    batch = torch.arange(m).repeat_interleave(30)
    edges = torch.cat([torch.randint(30, (2, 120)) + 30 * n for n in range(m)], 1)
    return _labelled(Net(), (torch.randn(30 * m, 16), edges, batch), m, None)


class Recurrent(nn.Module):
    """Two layers of LSTM and a head on the last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(32, 128, num_layers=2, batch_first=True), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _pinn(m: int) -> Work:
    """Residuals of the heat equation at m points."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), *hidden, nn.Linear(64, 1, bias=False))
    t, x = (torch.rand(m, 1, requires_grad=True) for _ in range(2))

    def residuals() -> Tensor:
        u = model(torch.cat([t, x], 1))
        ut, ux = torch.autograd.grad(u.sum(), (t, x), create_graph=True)
        (uxx,) = torch.autograd.grad(ux.sum(), x, create_graph=True)
        return (ut - 0.1 * uxx).square().squeeze(1)

    return work_on(model, m, residuals)


class Spectral(nn.Module):
    """A Fourier neural operator on a line: products with complex weights of the lowest frequencies."""

    def __init__(self, width: int = 32, modes: int = 12, layers: int = 4) -> None:
        super().__init__()
        self.modes = modes
        self.lift, self.down = nn.Conv1d(1, width, 1), nn.Conv1d(width, 1, 1)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(width, width, modes, 2) / width) for _ in range(layers)
        )
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for weight, local in zip(self.weights, self.local, strict=True):
            low = torch.fft.rfft(x)[..., : self.modes]
            mixed = torch.fft.irfft(torch.einsum("bik,iok->bok", low, torch.view_as_complex(weight)), n=x.shape[-1])
            x = (mixed + local(x)).tanh()
        return self.down(x)


def _operator(m: int) -> Work:
    model, inputs, outputs = Spectral(), torch.randn(m, 1, 64), torch.randn(m, 1, 64)
    return work_on(model, m, lambda: (model(inputs) - outputs).square().mean((1, 2)))


_SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 344}
CASES: dict[str, Case] = {
    "resnet18": Case("timm ResNet-18, 64x64, evaluation", 8, _timm("resnet18", 64, None)),
    "vit_tiny": Case("timm ViT tiny, 64x64", 8, _timm("vit_tiny_patch16_224", 64, 0, img_size=64)),
    "mobilenetv3": Case("timm MobileNetV3 small, 64x64, evaluation", 8, _timm("mobilenetv3_small_100", 64, None)),
    "bert": Case("transformers BERT, 4 layers, d 128, T 64", 8, _bert),
    "llama": Case(
        "transformers Llama, 4 layers, d 128, T 64", 8, _language("llama", 0, **_SMALL, num_key_value_heads=4)
    ),
    "mixtral": Case(
        "transformers Mixtral, 2 layers, 4 experts, d 128, T 64",
        8,
        _language("mixtral", None, **_SMALL | {"num_hidden_layers": 2}, num_key_value_heads=4, num_local_experts=4),
    ),
    "gat": Case("torch_geometric GATv2, graphs of 30 nodes", 16, _graphs),
    "lstm": Case(
        "LSTM, 2 layers, d 128, T 32", 16, lambda m: _labelled(Recurrent(), (torch.randn(m, 32, 32),), m, None)
    ),
    "pinn": Case("PINN, heat equation, 4 layers of 64", 64, _pinn),
    "operator": Case("Fourier neural operator, 4 layers of 32", 16, _operator),
}


def measure(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """As `few.measure`; a contender that does not take the model is named with its reason."""
    steps: dict[str, Prepared] = {}
    results: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, contender in CONTENDERS.items():
            try:
                step = step_of(case.build(), contender)
                step.take()
            except RefusalError as error:
                results[name] = {"refused": said(error)}
            else:
                steps[name] = step
        taken = {name: step.take for name, step in steps.items()}
        times = interleave(taken, rounds=rounds, warmup=2, seconds=seconds, at_least=0.02, clock=time.process_time)
    results |= summary(times)
    return {name: results[name] for name in CONTENDERS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--cases", default=",".join(CASES), help="by commas (default: all)")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds per case (default: 25)")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed per case, 5 rounds at least (default: 20)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="add the results to this file, case by case")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write case by case."""
    torch.set_num_threads(1)
    unknown = set(args.cases.split(",")) - set(CASES)
    if unknown:
        raise InputError(f"got cases {', '.join(sorted(unknown))}; expected some of {', '.join(CASES)}")
    facts = {"environment": describe(PACKAGES), "products": products_used()}
    found = report(facts, {"rounds": args.rounds, "seconds_per_case": args.seconds})
    if args.json and args.json.exists():
        found["cases"] = json.loads(args.json.read_text())["cases"]
    rows = [["case", *CONTENDERS]]
    for name in args.cases.split(","):
        case = CASES[name]
        try:
            results = measure(case, args.rounds, args.seconds)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        found["cases"][name] = {"title": case.title, "m": case.m, "load": load(), "contenders": results}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["cases"][name]["torchjd_gramian_difference"] = gramian_difference(case.build())
        rows.append(line(name, results))
        print(aligned(rows, "l" + "r" * len(CONTENDERS)), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0
