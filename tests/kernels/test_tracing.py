"""Functions that are one operation of a trace: schema, shape, strides and aliases as foretold; what may be asked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gramjd.aggregation import UPGrad
from gramjd.compiled.weights import Handle
from gramjd.engine import _torch
from gramjd.kernels import tracing
from gramjd.kernels.tracing import TraceError, Tracing, constant, host, to_numpy, traced

F32 = torch.float32


def outer(K: int, b: int, T: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, b, T, 5), torch.randn(K, 1, b, T, 6)


def table(K: int, b: int, T: int) -> tuple[Tensor, Tensor]:
    return torch.randint(7, (b, T)), torch.randn(K, b, T, 6)


WINDOW = [3, 3], [1, 1], [1, 1], [1, 1], 1
CASES: dict[str, tuple[Any, ...]] = {
    "gram": ("gram", torch.randn(150, 20)),
    "rows": ("outer", "rows", *outer(2, 4, 3), F32),
    "pairwise": ("outer", "pairwise", *outer(2, 4, 3), F32),
    "shared": ("outer", "shared", *outer(4, 1, 3), F32),
    "gathered": ("gathered", *table(2, 4, 3), F32),
    "cross rows": ("cross", "rows", *outer(2, 4, 3), *outer(1, 5, 2), F32),
    "cross gathered": ("cross_gathered", *table(2, 4, 3), *table(1, 5, 2), F32),
    "cross outer gathered": (
        "cross_outer_gathered", torch.randn(4, 3, 6), torch.randn(2, 4, 3, 7), *table(1, 5, 2), F32,
    ),
    "convolution": ("convolution", torch.randn(4, 3, 6, 6), torch.randn(2, 4, 5, 6, 6), *WINDOW, F32),
    "stacked": ("convolution", torch.randn(2, 4, 3, 6, 6), torch.randn(1, 4, 5, 6, 6), *WINDOW, F32),
    "weighted convolution": (
        "weighted_convolution", torch.randn(4, 3, 6, 6), torch.randn(2, 4, 5, 6, 6), torch.rand(8), [5, 3, 3, 3], False,
        [1, 1], [1, 1], [1, 1], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operations_are_what_they_say(name: str) -> None:
    operation, *args = CASES[name]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.gramjd, operation).default, tuple(args), test_utils=tests)


@pytest.mark.skipif(_torch.onednn_linear is None, reason="a build without oneDNN")
@pytest.mark.parametrize("turned", [False, True])
def test_products_are_what_they_say(turned: bool) -> None:
    a, b = torch.randn(30, 40), torch.randn(40, 8)
    a = torch.randn(40, 30).T if turned else a
    torch.library.opcheck(torch.ops.gramjd.product.default, (a, b), test_utils=("test_schema", "test_faketensor"))


def test_weights_are_what_they_say() -> None:
    handle, J = Handle(UPGrad()), torch.randn(4, 9)
    args = J @ J.T, torch.rand(4), handle.number
    torch.library.opcheck(torch.ops.gramjd.weights.default, args, test_utils=("test_schema", "test_faketensor"))


def test_outside_of_a_trace_everything_is_as_it_is() -> None:
    t = torch.arange(3)
    assert tracing.tracing() is None
    assert constant(t) is t
    assert to_numpy(t).tolist() == [0, 1, 2]
    assert tracing.donates()


def test_what_a_trace_knows() -> None:
    state = Tracing(donates=False)
    source = torch.tensor([2, 0, 1])
    with _torch.fake_tensors() as paper, traced(state):
        fake, other = paper.from_tensor(source), paper.from_tensor(torch.zeros(3))
        assert not tracing.donates()
        with pytest.raises(TraceError, match="may differ from step to step"):
            host(fake)
        state.know(fake, source)
        assert to_numpy(fake).tolist() == [2, 0, 1]
        assert state.decided == [source]
        state.forget(other)
        assert state.knows(fake)
        state.forget(fake[1:])
        assert not state.knows(fake)
    source.add_(1)  # what is known is a copy
    assert tracing.tracing() is None
