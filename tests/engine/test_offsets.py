"""Losses that own segments of one factor: by offsets where a kernel takes them, with the result of the other ways."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd.engine.factor import Outer
from gramjd.engine.offsets import gram_by_offsets
from gramjd.kernels import devices, dispatch, segments
from gramjd.kernels.dispatch import use_backend
from tests.oracle import oracle_gramian

CALLS: list[tuple[int, int]] = []


def counted(x: Tensor, c: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """The torch form in the place of a kernel for CPUs."""
    CALLS.append((len(x), starts.shape[1] - 1))
    return segments._pairwise(x, c, starts, dtype)


@pytest.fixture(autouse=True)
def _kernel_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(dispatch.TABLE, ("segments.pairwise", "cpu"), f"{__name__}:counted")
    kernels = {"cpu": ("segments.pairwise",)}
    monkeypatch.setattr(devices, "_loaded", devices.ENTRIES[-1]._replace(kernels=kernels))
    dispatch._function.cache_clear()
    CALLS.clear()
    with use_backend("auto"):
        yield
    dispatch._function.cache_clear()


def routed(m: int, experts: int, d: int) -> tuple[Tensor, list[nn.Parameter]]:
    """Tokens of m samples, 1 to m each, that go to the one or the other expert: losses per sample."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.repeat_interleave(torch.arange(m), torch.arange(1, m + 1))
    layers = nn.ModuleList(nn.Linear(d, d) for _ in range(experts))
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / d**0.5)
    x = torch.randn(len(tokens), d, generator=generator)
    chosen = torch.randint(experts, (len(tokens),), generator=generator)
    losses = torch.zeros(m)
    for n, layer in enumerate(layers):
        mine = chosen == n
        losses = losses.index_add(0, tokens[mine], layer(x[mine]).tanh().square().sum(1))
    return losses, list(layers.parameters())


def test_routed_tokens() -> None:
    losses, inputs = routed(m=6, experts=2, d=40)
    expected = oracle_gramian(losses, inputs)
    got = gramjd.gramian(losses, inputs=inputs)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    weights = [call for call in CALLS if call[0]]
    assert len(weights) == 2  # one call per expert, whatever the lengths
    assert sum(positions for positions, _ in weights) == 21


@pytest.mark.parametrize("T", [1, 3])
def test_any_order_and_slices_of_nobody(T: int) -> None:
    """Against the factor's own rows, added up by loss."""
    owners = np.array([4, -1, 0, 4, 2, 0, 4, -1])
    generator = torch.Generator().manual_seed(T)
    x, c = (torch.randn(*shape, generator=generator) for shape in ((1, 8, T, 30), (1, 1, 8, T, 25)))
    found = gram_by_offsets([Outer(owners, (25, 30), "", x, c)], torch.float32)
    assert found is not None
    losses, block = found
    assert losses.tolist() == [0, 2, 4]
    rows = torch.einsum("nti,nto->noi", x[0].double(), c[0, 0].double()).flatten(1)
    J = torch.stack([rows[torch.from_numpy(owners == loss)].sum(0) for loss in losses])
    torch.testing.assert_close(block.triu().double(), (J @ J.T).triu(), rtol=1e-5, atol=1e-3)
    assert CALLS == [(6 * T, 3)]


def outer(owners: list[int], b: int = 4, K: int = 1, g: int = 1, i: int = 30) -> Outer:
    x, c = torch.ones(g, b, 1, i), torch.ones(K, g, b, 1, i)
    return Outer(np.array(owners), (i, i), "", x, c)


OTHERS = {
    "a row per loss": ([outer([0, 1, 2, 3])], torch.float32),
    "several factors": ([outer([0, 0, 1, 1]), outer([0, 0, 1, 1])], torch.float32),
    "stacked rows": ([outer([0, 0, 1, 1] * 2, K=2)], torch.float32),
    "groups": ([outer([0, 0, 1, 1], g=2)], torch.float32),
    "rows are fewer operations": ([outer([0, 0, 1, 1], i=2)], torch.float32),
    "float64": ([outer([0, 0, 1, 1])], torch.float64),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_the_other_ways(name: str) -> None:
    factors, dtype = OTHERS[name]
    assert gram_by_offsets(factors, dtype) is None
    assert not CALLS


def test_without_a_kernel_nothing_changes() -> None:
    factor = outer([0, 0, 1, 1])
    assert gram_by_offsets([factor], torch.float32) is not None
    with use_backend("torch"):
        assert gram_by_offsets([factor], torch.float32) is None
