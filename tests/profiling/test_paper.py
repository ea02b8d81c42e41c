"""A plain step on paper takes the bytes that are counted in a real one, and leaves the model as it was."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gramjd.profiling import paper
from gramjd.profiling.marks import ignore
from gramjd.profiling.memory import peak_bytes
from gramjd.profiling.methods import METHODS
from gramjd.profiling.paper import counted_step
from gramjd.profiling.target import build


class Keeps(nn.Module):
    """Holds on to its last output, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        self.last = self.layer(x)
        return self.last


def tanh_net():
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


def squares(model):
    x = torch.randn(8, 5, 16)
    return model, lambda: model(x).square().sum((1, 2))


def normalised():
    model = nn.Sequential(nn.Flatten(), nn.Linear(80, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 4))
    x = torch.randn(8, 5, 16)
    return model, lambda: model(x).square().sum(1)


def tied():
    table, tokens = nn.Embedding(50, 16), torch.randint(50, (8, 6))
    return table, lambda: (table(tokens) @ table.weight.T).square().mean((1, 2))


def without_module():
    w, x = torch.randn(16, 4, requires_grad=True), torch.randn(8, 16)
    return [w], lambda: (x @ w).square().sum(1)


def a_list():
    model, x = nn.Linear(16, 4), torch.randn(8, 16)
    return model, lambda: [model(row).square().sum() for row in x]


def fresh_batches():
    model = nn.Linear(16, 4)
    return model, lambda: model(torch.randn(8, 16)).square().sum(1)


def with_a_condition():
    model, x = nn.Linear(16, 4), torch.randn(8, 16)

    def losses():
        out = model(x)
        return (out if out.sum() < 1e9 else -out).square().sum(1)

    return model, losses


MODELS = {
    "linear": lambda: squares(tanh_net()),
    "recurrent": lambda: squares(nn.Sequential(nn.RNN(16, 8, batch_first=True), First())),
    "attention": lambda: squares(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)),
    "keeps": lambda: squares(Keeps()),
    **{make.__name__: make for make in (normalised, tied, without_module, a_list, fresh_batches, with_a_condition)},
}


class First(nn.Module):
    def forward(self, results):
        return results[0]


@pytest.fixture
def ways(monkeypatch):
    """Whether each count was made on paper, in order."""
    seen = []
    counted = paper._counted
    monkeypatch.setattr(paper, "_counted", lambda work, count: seen.append(bool(count.paper)) or counted(work, count))
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_paper_and_reality_agree(name, ways):
    torch.manual_seed(0)
    work = build(MODELS[name])
    told = counted_step(work)
    step = METHODS["plain"](work, "UPGrad")
    work.clear()
    step(ignore)
    work.clear()
    assert told.plain == pytest.approx(peak_bytes(partial(step, ignore)), rel=0.02)
    assert ways == ([True] if name != "with_a_condition" else [True, False])


def test_what_is_held_and_saved():
    torch.manual_seed(0)
    work = build(lambda: squares(tanh_net()))
    told = counted_step(work)
    assert told.held == 4 * (16 * 32 + 32 + 32 * 4 + 4 + 8 * 5 * 16)  # parameters and batch
    assert told.saved == 4 * (8 * 5 * 32 + 8 * 5 * 4 + 8)  # hidden units, outputs, losses


def test_recomputed_activations_are_counted_when_they_are_made():
    torch.manual_seed(0)
    inner, head, x = (
        nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4))),
        nn.Linear(64, 2),
        torch.randn(256, 64),
    )

    def losses(again):
        hidden = checkpoint(inner, x, use_reentrant=False) if again else inner(x)
        return head(hidden).square().sum(1)

    model = nn.ModuleList([inner, head])
    kept, again = (counted_step(build(lambda: (model, partial(losses, again)))) for again in (False, True))  # noqa: B023
    assert kept.saved - again.saved == 3 * 4 * 256 * 64  # all but the last hidden layer
    assert again.plain > again.saved + 3 * 4 * 256 * 64


def test_the_model_is_left_as_it_was(ways):
    torch.manual_seed(0)
    work = build(lambda: squares(Keeps()))
    model = work.model
    calls, last = model.calls, model.last
    handle = model.register_forward_hook(lambda *_: None)
    counted_step(work)
    assert ways == [True]
    assert model.calls is calls
    assert model.last is last
    assert all(p.grad is None for p in model.parameters())
    handle.remove()
    assert not model._forward_hooks
    assert torch.isfinite(work.vector()).all()


def test_the_random_state_is_left_alone():
    work = build(normalised)
    state = torch.get_rng_state()
    counted_step(work)
    assert torch.equal(torch.get_rng_state(), state)


def test_faults_of_the_model_pass_through():
    work = build(lambda: squares(tanh_net()))
    broken = type(work)(work.model, work.parameters, lambda: torch.ones(3) @ torch.ones(4), 3, work.device)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        counted_step(broken)
