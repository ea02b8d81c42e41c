"""Nested against combining the rows of J twice, and its ways through gram_backward."""

import itertools
import math

import pytest
import torch

from gramjd import gram_backward
from gramjd.aggregation import (
    CRMOGM,
    MGDA,
    AlignedMTL,
    Constant,
    GaussNewton,
    GradDrop,
    MoDo,
    NashMTL,
    Nested,
    Random,
    Sven,
    UPGrad,
)
from gramjd.errors import AggregatorError

from .optimality import KINDS, jacobian

PAIRS = [(UPGrad(), UPGrad()), (MGDA(), UPGrad()), (UPGrad(), NashMTL()), (AlignedMTL(), MGDA())]


def twice(J, tasks, samples, first):
    """The update from the rows `J` [n, k, p] themselves, one weighting after the other."""
    if first == "tasks":
        return samples.aggregate(torch.stack([tasks.aggregate(rows) for rows in J]))
    return tasks.aggregate(torch.stack([samples.aggregate(rows) for rows in J.transpose(0, 1)]))


@pytest.mark.parametrize("first", ["tasks", "samples"])
@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_is_combining_the_rows_twice(first, pair):
    tasks, samples = PAIRS[pair]
    for (n, k), kind in itertools.product([(1, 1), (1, 4), (5, 1), (3, 4), (6, 2)], ["full", "wide", "half space"]):
        for seed in range(2):
            J = jacobian(kind, n * k, seed)
            J = J * torch.logspace(-2, 2, n * k, dtype=torch.float64)[:, None] if seed % 2 else J
            w = Nested(tasks, samples, first)(J @ J.mT, torch.ones(n, k))
            expected = twice(J.view(n, k, -1), tasks, samples, first)
            torch.testing.assert_close(J.mT @ w, expected, rtol=1e-7, atol=1e-7 * float(J.norm()))


@pytest.mark.parametrize("first", ["tasks", "samples"])
def test_means_of_means_are_the_mean_of_all(first):
    J = jacobian("full", 12, 0)
    w = Nested(Constant([1 / 4] * 4), Constant([1 / 3] * 3), first)(J @ J.mT, torch.ones(3, 4))
    torch.testing.assert_close(w, torch.full((12,), 1 / 12, dtype=torch.float64))


def test_weights_are_in_the_order_of_the_losses():
    tasks, samples = [1.0, 2.0, 3.0], [10.0, 20.0]
    w = Nested(Constant(tasks), Constant(samples), "samples")(torch.eye(6), torch.ones(2, 3))
    assert w.tolist() == [10, 20, 30, 20, 40, 60]


def test_inner_and_outer_weightings_get_their_losses():
    """Gauss-Newton within each sample and again over the combined losses, by hand on the rows."""
    J, L = jacobian("wide", 6, 1).view(2, 3, -1), torch.arange(1.0, 7.0, dtype=torch.float64).view(2, 3)
    inner, outer = GaussNewton(0.1), Sven()
    V = torch.stack([inner(rows @ rows.mT, values) for rows, values in zip(J, L, strict=True)])
    combined = torch.einsum("ia,iap->ip", V, J)
    expected = outer.aggregate(combined, (V * L).sum(1))
    flat = J.reshape(6, -1)
    torch.testing.assert_close(Nested(inner, outer).aggregate(flat, L), expected)


def test_conflicts_are_settled_where_asked():
    J = jacobian("half space", 12, 3).view(4, 3, -1)
    update = Nested(first="samples").aggregate(J.reshape(12, -1), torch.ones(4, 3))
    rows = torch.stack([UPGrad().aggregate(task) for task in J.transpose(0, 1)])
    assert (rows @ update >= -1e-9).all()
    flat = UPGrad().aggregate(J.reshape(12, -1))
    assert not torch.allclose(update, flat)


def test_through_gram_backward():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    losses = model(x).square()
    rows = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses.flatten()]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    gram_backward(losses, Nested(first="tasks"))
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(got, twice(J.view(4, 3, -1), UPGrad(), UPGrad(), "tasks"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("first", ["tasks", "samples"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_awkward_gramians_give_finite_weights(first, kind, dtype):
    for tasks, samples in PAIRS[:3]:
        for seed in range(3):
            J = jacobian(kind, 8, seed).to(dtype)
            w = Nested(tasks, samples, first)((J @ J.mT).requires_grad_(), torch.ones(4, 2))
            assert w.isfinite().all()
            assert not w.requires_grad
            assert w.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale(scale):
    J = jacobian("full", 6, 0)
    weighting, losses = Nested(MGDA(), UPGrad()), torch.ones(2, 3)
    torch.testing.assert_close(weighting(J @ J.mT * scale**2, losses), weighting(J @ J.mT, losses))


def test_gradients_that_cancel_stay_nothing():
    """MGDA of two opposite gradients is zero up to rounding; the rounding must not become a direction."""
    for dtype in (torch.float64, torch.float32):
        g = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
        J = torch.cat([g, -3 * g], 1).reshape(4, 7)
        J[3] = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=dtype)
        w = Nested(MGDA(), UPGrad())(J @ J.mT, torch.ones(2, 2))
        assert w.abs().amax() <= 1
        alone = J[2:].mT @ MGDA()(J[2:] @ J[2:].mT) / 2
        torch.testing.assert_close(J.mT @ w, alone, rtol=1e-4, atol=1e-4)


def test_an_empty_batch():
    assert Nested()(torch.zeros(0, 0), torch.ones(0, 3)).shape == (0,)


def test_a_generator_is_shared_by_the_blocks():
    w = Nested(Random(seed=0), Constant([1.0, 1.0]))(torch.eye(6), torch.ones(2, 3))
    assert w[:3].sum().item() == pytest.approx(1)
    assert not torch.allclose(w[:3], w[3:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nested(first="rows"), "first must be 'tasks' or 'samples'; got 'rows'"),
        (lambda: Nested(tasks=MGDA), r"tasks must be a function from G to weights, such as UPGrad\(\)"),
        (
            lambda: Nested(samples=GradDrop()),
            "must be a function of the Gramian; GradDrop.* needs the gradients",
        ),
        (lambda: Nested(tasks=MoDo()), "MoDo.* would mix those of different samples: it can be applied second"),
        (lambda: Nested(samples=CRMOGM(MGDA()), first="samples"), "would mix those of different tasks"),
        (lambda: Nested()(torch.eye(4), torch.ones(4)), r"shape \[samples, tasks\] in one tensor; got shape \[4\]"),
        (lambda: Nested()(torch.eye(8), torch.ones(2, 2, 2)), r"got shape \[2, 2, 2\]"),
        (lambda: Nested()(torch.eye(4), torch.ones(2, 3)), r"losses of shape \[2, 3\] for a Gramian that is 4 x 4"),
        (lambda: Nested()(torch.eye(4)), r"Nested needs the values of the losses: call it with \(G, losses\)"),
        (lambda: Nested()(torch.full((4, 4), math.nan), torch.ones(2, 2)), "must be finite; 16 of 16"),
        (
            lambda: Nested(tasks=lambda G: G)(torch.eye(4), torch.ones(2, 2)),
            r"shape \[2\]; got shape \[2, 2\]",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(AggregatorError, match=message):
        make()
