"""Cotangents that are written over: only where nobody else has them, and then without new memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gramjd
from gramjd import backward
from gramjd.engine import plan, rules, walk
from gramjd.engine.cotangent import Cotangent
from gramjd.engine.layout import dense
from gramjd.engine.rules import pointwise, vocabulary
from gramjd.engine.unite import added, appended
from gramjd.kernels import cost
from tests.oracle import assert_close_gramian, oracle_gramian

ACTIVATIONS = [F.relu, torch.tanh, torch.sigmoid, F.silu, F.gelu, F.elu, F.selu, F.leaky_relu]


def chain(act, inner: int = 6) -> tuple[nn.Linear, nn.Linear, nn.Linear, Tensor]:
    torch.manual_seed(0)
    a, b, c = (nn.Linear(*sizes, dtype=torch.float64) for sizes in ((5, inner), (inner, inner), (inner, 3)))
    return a, b, c, torch.randn(7, 5, dtype=torch.float64)


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """The names of the nodes that wrote over what they were given."""
    seen: list[str] = []
    plan.forget()

    def note(formula):
        def noted(node, c):
            seen.append(node.name)
            return formula(node, c)

        return noted

    for name, formula in pointwise._FORMULAS.items():
        rule = pointwise.overwriting(note(formula), name == "Gelu")
        monkeypatch.setitem(rules.TABLE, f"{name}Backward0", rule)
    return seen


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
def test_activations_between_layers_are_written_over_and_right(written, act):
    a, b, c, x = chain(act)
    losses = c(act(b(act(a(x))))).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert len(written) == 2


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
def test_what_a_residual_shares_is_left_alone(written, act):
    a, b, c, x = chain(act)
    h = a(x)
    losses = c(h + act(h) + act(b(h + act(h)))).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
def test_stacked_rows_are_written_over_and_right(written, act):
    a, b, c, x = chain(act)
    losses = c(act(b(act(a(x))))).square().mean(0)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert len(written) == (0 if act is F.gelu else 2)


@pytest.mark.parametrize("update", backward.UPDATES)
def test_rows_that_are_asked_for_stay(written, update):
    a, b, c, x = chain(F.relu)
    h = F.relu(a(x))
    losses = c(F.tanh(b(h))).square().sum(1)
    inputs = [h, *b.parameters(), *c.parameters()]
    expected = oracle_gramian(losses, inputs)
    whole = torch.autograd.grad(losses.sum(), inputs, retain_graph=True)
    step = gramjd.gram_backward(losses, gramjd.Sum(), inputs=inputs, update=update)
    assert_close_gramian(step.gramian, expected, 1e-12)
    for t, g in zip(inputs, whole, strict=True):
        torch.testing.assert_close(t.grad, g, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
def test_hooked_and_expanded_cotangents_are_left_alone(written):
    a, b, _, x = chain(F.relu)
    h = F.relu(a(x))
    h.register_hook(lambda g: 2 * g)
    losses = F.relu(b(h)).sum(1)  # its cotangent is one number, expanded
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert written == []


LAYERS = {
    "linear": lambda: (nn.Linear(6, 6), nn.Linear(6, 6), torch.randn(7, 6)),
    "no bias": lambda: (nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), torch.randn(7, 6)),
    "narrower": lambda: (nn.Linear(4, 4), nn.Linear(4, 6), torch.randn(7, 4)),
    "convolution": lambda: (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), torch.randn(3, 3, 5, 6)),
    "one pixel": lambda: (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), torch.randn(3, 3, 1, 1)),
    "grouped": lambda: (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 2, groups=2), torch.randn(3, 3, 5, 6)),
    "transposed": lambda: (nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2), torch.randn(3, 3, 5, 6)),
}


@pytest.fixture
def room(monkeypatch) -> list[str]:
    """Next to no room for temporaries. The names of the nodes that wrote over what they were given instead."""
    seen: list[str] = []
    written_over = walk._written_over

    def noted(values, step, over):
        seen.append(step.name)
        return written_over(values, step, over)

    monkeypatch.setattr(cost, "CHUNK", 8)
    monkeypatch.setattr(cost, "LEAST_CHUNK", 8)
    monkeypatch.setattr(vocabulary, "IN_CACHE", 50)
    monkeypatch.setattr(walk, "_written_over", noted)
    return seen


def net(kind: str, frozen: bool = False) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    first, second, x = LAYERS[kind]()
    second.weight.requires_grad_(not frozen)
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Flatten()).double()
    return nn.Sequential(model, nn.LazyLinear(3).double()), x.double()


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_write_over_what_their_parameters_took(room, kind):
    model, x = net(kind)
    for _ in range(3):  # planned, and from the plan
        losses = model(x).square().sum(1)
        assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert len(set(room)) == 1
    norms = gramjd.gradient_norms(losses)
    assert_close_gramian(torch.diag(norms.square()), torch.diag(oracle_gramian(losses).diagonal()), 1e-12)


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_stacked_rows_of_layers_are_written_over(room, kind):
    model, x = net(kind)
    losses = model(x).square().mean(0)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert room


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_kept_for_an_update_is_left_alone(room, kind):
    model, x = net(kind)
    found = []
    for update in ("reuse", "reuse", "reuse", "backward"):
        model.zero_grad()
        losses = model(x).square().sum(1)
        expected = oracle_gramian(losses)
        step = gramjd.gram_backward(losses, lambda G: torch.linspace(-1, 1, len(G), dtype=G.dtype), update=update)
        assert_close_gramian(step.gramian, expected, 1e-12)
        assert bool(room) == (update == "backward")
        found.append([p.grad.clone() for p in model.parameters()])
    for mine, other in zip(found[2], found[3], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_frozen_weight_takes_nothing(room, kind):
    model, x = net(kind, frozen=True)
    losses = model(x).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert not room


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_weight_that_is_used_twice_waits(room, kind):
    torch.manual_seed(0)
    layer = {"linear": nn.Linear(6, 6), "convolution": nn.Conv2d(4, 4, 3, padding=1)}[kind].double()
    x = torch.randn(3, *((6,) if kind == "linear" else (4, 5, 5)), dtype=torch.float64)
    losses = layer(torch.tanh(layer(torch.tanh(layer(x))))).flatten(1).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    assert not room


@pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_inputs_that_are_asked_for_stay(room, kind):
    """The rows of something in the middle, which a rectangle keeps until the other side has come."""
    model, x = net(kind)
    hidden = model[0][1](model[0][0](x))
    losses = model[1](model[0][2:](hidden)).square().sum(1)
    targets = [hidden, *model.parameters()]
    expected = oracle_gramian(losses, targets)
    assert_close_gramian(gramjd.gramian(losses, targets), expected, 1e-12)
    assert_close_gramian(gramjd.gramian(losses, targets, other=losses), expected, 1e-12)
    hidden.register_hook(lambda g: 2 * g)
    losses = model[1](model[0][2:](hidden)).square().sum(1)
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)


def test_sums_go_to_memory_that_is_owned():
    layout = dense(torch.arange(2).numpy(), 3)

    def group(number: float, owned: bool) -> Cotangent:
        return Cotangent.of(layout, torch.full((2, 3), number), donated=owned)

    for one, other in ((False, False), (False, True), (True, False), (True, True)):
        a, b = group(1.0, one), group(2.0, other)
        total = added(a, b)
        assert torch.equal(total.values, torch.full((2, 3), 3.0))
        assert total.donated
        assert one or torch.equal(a.values, torch.ones(2, 3))
        assert other or torch.equal(b.values, torch.full((2, 3), 2.0))
        assert (total is a, total is b) == (one, other and not one)


def rows_of(values: Tensor, owners: list[int], owned: bool = True) -> Cotangent:
    return Cotangent.of(dense(np.array(owners), values[0].numel()), values, donated=owned)


def test_rows_that_arrive_one_by_one_are_put_where_they_will_stand(room):
    charged: list[int] = []
    parts = [torch.full((1, 4, 5), float(n)) for n in range(4)]
    with cost.chunks_of(8):
        total = rows_of(parts[0], [3])
        for n, owner in ((1, 0), (2, 7), (3, 5)):
            more = appended(total, rows_of(parts[n], [owner]), 4 - n, charged.append)
            assert more is not None
            assert n == 1 or more._memory is total._memory
            total = more
        assert torch.equal(total.values, torch.cat(parts))
        assert total.layout.owners.tolist() == [3, 0, 7, 5]
        assert charged == [4 * 20 * 4]
        one = rows_of(parts[0], [3])
        for other, more in [
            (rows_of(parts[1], [3]), 3),  # the same loss
            (rows_of(parts[1], [-1]), 3),  # nobody's
            (rows_of(parts[1], [1], owned=False), 3),
            (rows_of(parts[1], [1]), 0),  # nothing is to come
            (rows_of(torch.ones(1, 2, 2), [1]), 3),
        ]:
            assert appended(one, other, more, charged.append) is None
    assert appended(one, rows_of(parts[1], [1]), 3, charged.append) is None  # small
    assert len(charged) == 1


@pytest.mark.parametrize("heads", [2, 5])
def test_heads_on_one_trunk(room, heads):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()).double()
    last = [nn.Linear(6, 3).double() for _ in range(heads)]
    features = trunk(torch.randn(5, 4, dtype=torch.float64))
    losses = [F.cross_entropy(head(features), torch.randint(3, (5,))) for head in last]
    losses += [(last[0](features) * features[:, :3]).sum()]  # two messages of one loss
    assert_close_gramian(gramjd.gramian(losses), oracle_gramian(losses), 1e-12)
    norms = gramjd.gradient_norms(losses)
    assert_close_gramian(torch.diag(norms.square()), torch.diag(oracle_gramian(losses).diagonal()), 1e-12)
