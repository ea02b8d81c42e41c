"""Counting of allocations, on operations whose bytes are known."""

import pytest
import torch
from torch import nn

from gramjd.profiling.memory import peak_bytes

KB = 1024


def holding(*sizes):
    return [torch.empty(size, dtype=torch.uint8) for size in sizes]


def one_after_the_other():
    holding(3 * KB)
    holding(5 * KB)


def test_known_bytes():
    assert peak_bytes(lambda: None) == 0
    assert peak_bytes(lambda: holding(5 * KB)) == 5 * KB
    assert peak_bytes(lambda: holding(3 * KB, 5 * KB)) == 8 * KB
    assert peak_bytes(one_after_the_other) == 5 * KB


def test_operations():
    a, b = torch.ones(64, 32), torch.ones(32, 16)
    assert peak_bytes(lambda: a @ b) == 64 * 16 * 4
    assert peak_bytes(lambda: (a + a).sum()) == 64 * 32 * 4 + 4
    assert peak_bytes(lambda: a.view(-1).t()) == 0
    assert peak_bytes(lambda: a.add_(a)) == 0


def test_gradients_of_a_linear_layer():
    layer, x = nn.Linear(100, 50), torch.ones(8, 100)
    loss = layer(x).sum()
    # the two gradients are what remains; nothing of size 8 x 100 is made, as x needs no gradient
    parameters = 4 * (100 * 50 + 50)
    assert parameters <= peak_bytes(loss.backward) <= parameters + 4 * 2 * 8 * 50


def test_memory_from_before_is_not_counted():
    held = holding(7 * KB)

    def work():
        held.clear()
        return holding(2 * KB)

    assert peak_bytes(work) == 2 * KB
    # What an earlier count saw come is seen to go.
    held = []
    peak_bytes(lambda: held.append(holding(7 * KB)))
    assert peak_bytes(work) == 2 * KB


def test_errors_pass_through():
    with pytest.raises(RuntimeError, match="broken"):
        peak_bytes(lambda: (_ for _ in ()).throw(RuntimeError("broken")))
    assert peak_bytes(lambda: holding(KB)) == KB


def test_nothing_is_printed(capfd):
    peak_bytes(lambda: holding(KB))
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_known_bytes_on_a_gpu():
    assert peak_bytes(lambda: torch.empty(1 << 20, device="cuda"), "cuda") == 4 << 20
