"""Lean: no large tensor is made, memory stays near a plain backward's, saved tensors are read once."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gramjd import Mean, explain, gram_backward, gramian
from gramjd.kernels import cost
from gramjd.profiling.memory import peak_bytes
from tests.oracle import leaves, oracle_gramian, relative_error
from tests.small import F32, F64, clear, cnn, encoder, gpt, mlp, squares

ALLOWED = 1.2


class Sizes(TorchDispatchMode):
    """Notes the size of every tensor that owns its memory, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor) and not t.is_meta:
                size = t.untyped_storage().nbytes() // t.element_size()
                self.seen[str(func)] = max(self.seen[str(func)], size)
        return out

    @property
    def largest(self) -> int:
        return max(self.seen.values())

    def at_least(self, size: int) -> dict[str, int]:
        return {name: n for name, n in self.seen.items() if n >= size}


def watched(call: Callable[[], object]) -> Sizes:
    with Sizes() as sizes:
        call()
    return sizes


def test_the_watch_sees_what_a_walk_makes() -> None:
    """The instrument itself: rows of a bias [m, o] are made, and seen."""
    model = nn.Sequential(nn.Linear(4, 300), nn.BatchNorm1d(300))
    losses = model(torch.randn(8, 4)).square().sum(1)
    with pytest.warns(UserWarning, match="BatchNorm"):
        assert watched(lambda: gramian(losses)).largest >= 8 * 8 * 300


@pytest.mark.parametrize("call", [gramian, lambda losses: gram_backward(losses, Mean())], ids=["gramian", "step"])
def test_linear_layers_make_no_rows(call: Callable[[Tensor], object]) -> None:
    """With one position a sample the largest tensor is a parameter's size, not m of them."""
    m, i, o = 16, 48, 40
    losses = squares(mlp(i, o, o, dtype=F32), m, i, F32)
    sizes = watched(lambda: call(losses))
    assert sizes.at_least(m * o * i) == {}
    assert sizes.largest <= max(m * i, i * o)


def test_tasks_over_a_batch_make_no_rows_of_a_wide_layer() -> None:
    """K tasks, no batch axis: K x parameters are formed in chunks at most."""
    layer = nn.Linear(64, 2048)
    y = layer(torch.randn(4, 64))
    losses = torch.stack([(y * k).sin().sum() for k in range(1, 9)])
    assert watched(lambda: gramian(losses)).at_least(8 * 64 * 2048) == {}


def test_tied_head_makes_no_rows_of_the_table() -> None:
    """m x V x d is what the naive Jacobian of the table takes."""
    m, V, d, T = 8, 300, 64, 6
    _, make = gpt(V, T, 1, d)
    losses = make(m)
    sizes = watched(lambda: gramian(losses))
    assert sizes.at_least(m * V * d) == {}


def test_embedding_makes_no_rows_of_the_table() -> None:
    table = nn.Embedding(5000, 16)
    losses = table(torch.randint(5000, (8, 6))).square().sum((1, 2))
    assert watched(lambda: gramian(losses)).largest < 5000 * 16


def ratio(leaves: list[Tensor], forward: Callable[[], Tensor]) -> float:
    """Peak bytes of a step over those of a plain step, forward pass included, no garbage around."""

    def measured(work: Callable[[], object]) -> int:
        clear(leaves)
        gc.collect()
        gc.disable()
        try:
            return peak_bytes(work)
        finally:
            gc.enable()

    forward().mean().backward()
    plain = measured(lambda: forward().mean().backward())
    return measured(lambda: gram_backward(forward(), Mean())) / plain


def test_peak_memory_of_an_mlp() -> None:
    model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
    x, y = torch.randn(32, 784), torch.randint(10, (32,))
    found = ratio(list(model.parameters()), lambda: nn.functional.cross_entropy(model(x), y, reduction="none"))
    assert found <= ALLOWED


def test_peak_memory_of_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model this small would hide behind the fixed size of a tile, so tiles shrink with it."""
    monkeypatch.setattr(cost, "CHUNK", 1 << 17)
    model, make = gpt(800, 32, 4, 64)
    assert ratio(list(model.parameters()), lambda: make(32)) <= ALLOWED


class Unpacks:
    """Counts how often each saved tensor is read back."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def pack(self, t: Tensor) -> tuple[int, Tensor]:
        self.counts.append(0)
        return len(self.counts) - 1, t.detach()

    def unpack(self, packed: tuple[int, Tensor]) -> Tensor:
        place, t = packed
        self.counts[place] += 1
        return t


MODELS: dict[str, Callable[[], Tensor]] = {
    "mlp": lambda: squares(mlp()),
    "cnn": lambda: cnn()(torch.randn(4, 2, 6, 6, dtype=F64)).square().sum(1),
    "transformer": lambda: encoder()(torch.randn(4, 3, 8, dtype=F64)).square().sum((1, 2)),
    "language model": lambda: gpt(20, 6, 1)[1](4),
}


@pytest.mark.parametrize("name", MODELS)
def test_saved_tensors_are_read_once(name: str) -> None:
    unpacks = Unpacks()
    with torch.autograd.graph.saved_tensors_hooks(unpacks.pack, unpacks.unpack):
        losses = MODELS[name]()
    plain = oracle_gramian(losses)
    unpacks.counts = [0] * len(unpacks.counts)
    assert relative_error(gramian(losses), plain) < 1e-5
    assert sum(unpacks.counts) > 0
    assert max(unpacks.counts) == 1


class Counted(nn.Module):
    """Counts forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 6, dtype=F64), nn.Tanh(), nn.Linear(6, 6, dtype=F64), nn.Tanh())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


@pytest.mark.parametrize("segments", [1, 3])
def test_a_checkpointed_segment_is_recomputed_once(segments: int) -> None:
    blocks = [Counted() for _ in range(segments)]
    hidden = torch.randn(4, 6, dtype=F64, requires_grad=True)
    for block in blocks:
        hidden = checkpoint(block, hidden, use_reentrant=False)
    losses = hidden.square().sum(1)
    before = [block.calls for block in blocks]
    gramian(losses, leaves(losses))
    assert [block.calls for block in blocks] == [n + 1 for n in before]
    expected = oracle_gramian(losses)
    before = [block.calls for block in blocks]
    step = gram_backward(losses, Mean(), inputs=leaves(losses))
    assert [block.calls for block in blocks] == [n + 2 for n in before]
    assert relative_error(step.gramian, expected) < 1e-12


def test_tiles_do_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of positions [m T, m T] are formed in tiles."""
    monkeypatch.setattr(cost, "CHUNK", 1 << 12)
    layer = nn.Linear(128, 128, dtype=F64)
    m, T = 32, 8
    losses = layer(torch.randn(m, T, 128, dtype=F64)).square().sum((1, 2))
    assert explain(losses, [layer.weight]).uses[0].route == "pairwise"
    sizes = watched(lambda: gramian(losses, [layer.weight]))
    assert sizes.largest <= m * T * 128 < (m * T) ** 2
