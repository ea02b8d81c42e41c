"""Steps in which the data decide what a loss owns: routed experts, padding that is dropped, graphs in one list.

    python -m gramjd.profiling.bench.routed [NAME ..]

Per case a line: CPU time of a Gramian and of the naive m backward passes, both over that of one backward pass of the
mean, taken in turns in one process, the median of their ratios; the multiply-adds that `explain` plans for the
Gramian's products; the bytes of stacked rows. Cases named `dense-*` are the same without routing, to compare with.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

import gramjd
from gramjd.engine import compute

ROUNDS = 7
Step = Callable[[], Tensor]
# Steps of the first rounds make plans; those after them are measured.
WARM = 2


class Routed(nn.Module):
    """Linear, experts of which each token takes one, as users write them, residual, linear: `[B, T, d] -> [B]`."""

    def __init__(self, d: int, experts: int, dense: bool = False) -> None:
        """`dense`: one expert for all tokens, without an index."""
        super().__init__()
        self.first, self.last, self.dense = nn.Linear(d, d), nn.Linear(d, d), dense
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(experts))

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        """Losses of x [B, T, d], with the expert of each token in route [B T]."""
        h = self.first(x).reshape(-1, x.shape[-1])
        out = torch.zeros_like(h)
        for e, expert in enumerate(self.experts):
            if self.dense:
                out = out + expert(h)
                continue
            (rows,) = torch.where(route == e)
            out = out.index_add(0, rows, expert(h[rows]))
        return self.last(h + out).reshape(x.shape).square().mean((1, 2))


def routed(B: int, T: int, d: int = 64, experts: int = 4, dense: bool = False) -> Step:
    """Losses [B] of `Routed`."""
    model, x = Routed(d, 1 if dense else experts, dense), torch.randn(B, T, d)
    route = torch.randint(experts, (B * T,))
    return lambda: model(x, route)


def padding(B: int, T: int, d: int = 64, dense: bool = False) -> Step:
    """Losses [B] of two linear layers, between which padding is dropped."""
    first, last, x = nn.Linear(d, d), nn.Linear(d, d), torch.randn(B, T, d)
    own, keep = torch.arange(B).repeat_interleave(T).view(B, T), torch.rand(B, T) > 0.15

    def losses() -> Tensor:
        h = first(x)
        if dense:
            return last(h).square().mean((1, 2))
        return torch.zeros(B).index_add(0, own[keep], last(h[keep]).square().mean(1))

    return losses


def graphs(B: int, nodes: int, d: int = 64) -> Step:
    """Losses [B] of two rounds of messages among graphs of different sizes that lie in one list."""
    sizes = torch.randint(nodes // 2, nodes + nodes // 2, (B,))
    own, starts = torch.arange(B).repeat_interleave(sizes), sizes.cumsum(0) - sizes
    into = torch.arange(len(own)).repeat_interleave(4)
    of = starts[own[into]] + (torch.rand(len(into)) * sizes[own[into]]).long()
    x, layers = torch.randn(len(own), d), nn.ModuleList(nn.Linear(d, d) for _ in range(3))

    def losses() -> Tensor:
        h = layers[0](x)
        for layer in layers[1:]:
            h = h + relu(torch.zeros_like(h).index_add(0, into, layer(h[of])))
        return torch.zeros(B).index_add(0, own, h.square().mean(1)) / sizes

    return losses


def mixtral(B: int, T: int, implementation: str, d: int = 128) -> Step:
    """Losses [B] of a Mixtral of transformers with two layers and four experts, two per token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {"attn_implementation": "sdpa", "use_cache": False, "vocab_size": 64}
    sizes |= {"hidden_size": d, "intermediate_size": 2 * d, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = MixtralConfig(**sizes)
    config._experts_implementation = implementation
    model, ids = MixtralForCausalLM(config), torch.randint(64, (B, T))

    def losses() -> Tensor:
        logits = model(input_ids=ids).logits
        scores = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return scores.mean(1)

    return losses


CASES: dict[str, Callable[[], Step]] = {
    "routed-8-32": partial(routed, 8, 32),
    "routed-8-128": partial(routed, 8, 128),
    "routed-8-256": partial(routed, 8, 256),
    "dense-8-256": partial(routed, 8, 256, dense=True),
    "padding-8-128": partial(padding, 8, 128),
    "dense-padding-8-128": partial(padding, 8, 128, dense=True),
    "graphs-32-20": partial(graphs, 32, 20),
    "mixtral-eager-8-32": partial(mixtral, 8, 32, "eager"),
    "mixtral-grouped-8-32": partial(mixtral, 8, 32, "grouped_mm"),
    "mixtral-eager-8-64": partial(mixtral, 8, 64, "eager"),
    "mixtral-grouped-8-64": partial(mixtral, 8, 64, "grouped_mm"),
}


@dataclass(frozen=True)
class Found:
    """Of one case: CPU milliseconds of a backward pass, those of the others over it, and what `explain` plans."""

    m: int
    plain: float
    gramian: float
    naive: float
    operations: int
    stacked_bytes: int


def ways(parameters: Sequence[Tensor]) -> Mapping[str, Callable[[Tensor], object]]:
    """What is done with losses: one backward pass, a Gramian, m backward passes."""

    def naive(losses: Tensor) -> object:
        return [torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True) for one in losses]

    return {
        "plain": lambda losses: torch.autograd.grad(losses.mean(), parameters, allow_unused=True),
        "gramian": lambda losses: gramjd.gramian(losses, parameters),
        "naive": naive,
    }


def measure(losses: Step, rounds: int = ROUNDS) -> Found:
    """Ratios within a round; the median of them."""
    told = gramjd.explain(losses())
    parameters = list(compute.read([losses()], None).targets.values())
    found: dict[str, list[float]] = {name: [] for name in ways(parameters)}
    for _ in range(rounds + WARM):
        for name, work in ways(parameters).items():
            graph = losses()
            start = time.process_time()
            work(graph)
            found[name].append(max(1e-9, time.process_time() - start))
    plain, gramian, naive = (found[name][WARM:] for name in ("plain", "gramian", "naive"))
    ratios = [statistics.median(a / b for a, b in zip(some, plain, strict=True)) for some in (gramian, naive)]
    spent = 1e3 * statistics.median(plain)
    return Found(told.losses, spent, ratios[0], ratios[1], told.operations // 2, told.row_bytes)


def main(names: Sequence[str]) -> None:
    """Print a line per case."""
    torch.set_num_threads(1)
    for name in names or CASES:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gramjd.errors.DenseRowsWarning)
            one = measure(CASES[name]())
        print(
            f"{name:22} m {one.m:3}  plain {one.plain:8.2f} ms  gramian {one.gramian:8.1f}x  naive {one.naive:6.1f}x  "
            f"{one.operations:.3g} multiply-adds  {one.stacked_bytes:.3g} B in rows",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
