"""A model that torch.compile compiled: what PyTorch says of it is said with a way out."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.errors import GraphError
from tests.oracle import oracle_gramian

pytestmark = [
    pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def losses(call: nn.Module, m: int) -> torch.Tensor:
    return cross_entropy(call(torch.randn(m, 6)), torch.randint(3, (m,)), reduction="none")


def test_a_second_batch_size_says_what_to_do() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    model = torch.compile(net, backend="aot_eager")
    gramjd.gram_backward(losses(model, 8))
    second = losses(model, 5)
    with pytest.raises(GraphError, match=r"backend=\"gramjd\".*dynamic=False.*_orig_mod.*donated buffers"):
        gramjd.gram_backward(second)


def test_the_ways_out_are_right() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    fixed = torch.compile(net, backend="aot_eager", dynamic=False)
    for call in (fixed, fixed._orig_mod):
        for m in (8, 5, 4):
            L = losses(call, m)
            inputs = list(net.parameters())
            torch.testing.assert_close(
                gramjd.gramian(L, inputs).double(), oracle_gramian(L, inputs), rtol=1e-4, atol=1e-6
            )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_compiled_function_with_a_step_in_it_breaks_there_and_is_right() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    seen = []

    def note(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    @torch.compile(backend=note)
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found = cross_entropy(net(x), y, reduction="none")
        return gramjd.gram_backward(found * 1).gramian * 2

    for _ in range(2):
        x, y = torch.randn(5, 6), torch.randint(3, (5,))
        expected = gramjd.gramian(cross_entropy(net(x), y, reduction="none"))
        torch.testing.assert_close(step(x, y), 2 * expected)
    assert len(seen) == 2  # what comes before, and what comes after
