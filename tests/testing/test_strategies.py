"""What the strategies promise holds for what they draw."""

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings

from gramjd.errors import InputError
from gramjd.testing import gramians, jacobians

quick = settings(derandomize=True, deadline=None, max_examples=40)


def cosines(J):
    norms = J.norm(dim=1)
    G = J @ J.mT / torch.outer(norms, norms).clamp_min(1e-300)
    return G.fill_diagonal_(1.0)


@quick
@given(jacobians((2, 6), (2, 5), conflict="none", scale=(-5, 5), row_scale=(-3, 3)))
def test_no_conflict(J):
    assert (J @ J.mT >= 0).all()


@quick
@given(jacobians((2, 6), (1, 5), conflict="some", row_scale=(-3, 3)))
def test_some_conflict(J):
    assert cosines(J).min() < 0


@quick
@given(jacobians((2, 6), (2, 5), conflict="strong", zero_rows=False))
def test_strong_conflict_leaves_a_common_direction(J):
    assert (J[:, -1] > 0).all()
    assert cosines(J).min() < 0


@quick
@given(jacobians((1, 6), (1, 5), conflict="stationary"))
def test_stationary_means_that_nobody_gains_alone(J):
    """By duality: zero is a positive combination iff no y has `J y >= 0` with some entry positive."""
    from scipy.optimize import linprog

    bounds = [(1e-6, None)] * len(J)
    assert linprog(np.zeros(len(J)), A_eq=J.mT.numpy(), b_eq=np.zeros(J.shape[1]), bounds=bounds).status == 0


@quick
@given(jacobians(5, 4, rank=2, row_scale=(-3, 3), near_singular=False))
def test_rank(J):
    assert torch.linalg.matrix_rank(J) <= 2


@quick
@given(jacobians((4, 6), 3, duplicated_rows=True, zero_rows=True, near_singular=True))
def test_special_rows_are_there(J):
    assert 4 <= len(J) <= 6
    assert (J == 0).all(1).any()
    distances = torch.cdist(J, J).fill_diagonal_(torch.inf)
    assert (distances == 0).any()


@quick
@given(gramians((1, 4), dtype=torch.float32))
def test_gramians(G):
    assert G.dtype == torch.float32
    assert torch.equal(G, G.mT)
    assert torch.linalg.eigvalsh(G.double()).min() >= -1e-4 * max(1.0, float(G.max()))


def test_shrinks_to_something_readable():
    J = find(jacobians(), lambda J: bool((J @ J.mT < 0).any()), settings=settings(database=None, derandomize=True))
    assert J.shape[0] == 2
    assert J.abs().max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conflict": "much"}, "conflict must be one of"),
        ({"rows": 1, "conflict": "some"}, "rows must allow 2 or more"),
        ({"rows": (3, 2)}, "rows must be an int or a pair"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"zero_rows": "yes"}, "zero_rows must be True, False or None"),
        ({"conflict": "stationary", "near_singular": True}, "would move a stationary matrix"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        jacobians(**options)
