"""The dual-cone solver that never waits for the device: as exact as the other one, and it asks the host nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from gramjd.aggregation.solvers import dual_cone, native

from .optimality import KINDS, assert_optimal, jacobian, jacobians

# What makes the host wait for a GPU: reading a value, a shape that depends on values, a copy between devices.
_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select", "unique", "_to_copy")
_WAITS_TOO = ("eigh", "_linalg_eigh", "linalg_lstsq", "_linalg_check_errors", "linalg_cholesky", "linalg_inv")


def eye(m):
    return torch.eye(m, dtype=torch.float64)


class NothingIsRead(TorchDispatchMode):
    """Fails on any operation that would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        stays = name == "_to_copy" and (kwargs or {}).get("device") in (None, args[0].device)
        assert stays or name not in _WAITS + _WAITS_TOO, f"{func} waits for the device"
        by_mask = name in ("index", "index_put", "index_put_")
        if by_mask:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), f"{func} by a mask waits for the device"
        return func(*args, **(kwargs or {}))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(jacobians())
def test_optimal_on_any_gramian(J):
    G = J @ J.mT
    assert_optimal(G, eye(len(G)), dual_cone(G, eye(len(G)), method="fixed"))


@pytest.mark.parametrize("kind", KINDS)
def test_optimal_on_larger_gramians(kind):
    J = jacobian(kind, 60, seed=1)
    assert_optimal(J @ J.mT, eye(60), dual_cone(J @ J.mT, eye(60), method="fixed"))


@pytest.mark.parametrize("kind", ["low", "rank one", "duplicates", "opposites", "half space", "zero rows"])
def test_rounding_that_leaves_a_gramian_indefinite_costs_no_more_than_the_rounding(kind):
    J = jacobian(kind, 24, seed=3).float()
    G = J @ J.mT
    W = dual_cone(G, eye(24), method="fixed")
    noise = 40 * torch.finfo(torch.float32).eps * float(W.sum(1).max()) ** 2
    assert_optimal(G, eye(24), W, tol=noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 3, 40])
def test_nothing_is_read_from_the_device(m, dtype):
    J = jacobian("wide", m, seed=0).to(dtype)
    G = J @ J.mT
    with NothingIsRead():
        W = dual_cone(G, eye(m), method="fixed")
    torch.testing.assert_close(W, dual_cone(G, eye(m)), rtol=1e-9, atol=1e-9)


def test_the_other_method_does_read(monkeypatch):
    monkeypatch.setattr(native, "COMPILED", None)  # which reads all of G at once, past any dispatch
    J = jacobian("wide", 12, seed=0)
    with pytest.raises(AssertionError, match="waits for the device"), NothingIsRead():
        dual_cone(J @ J.mT, eye(12))


@pytest.mark.parametrize(
    "G",
    [
        torch.full((2, 2), math.nan),
        torch.tensor([[math.inf, 0.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.5], [-0.5, 1.0]]),
        torch.tensor([[1.0, -2.0], [-2.0, 1.0]]),
        torch.tensor([[1.0, 0.5], [0.5, -1.0]]),
    ],
)
def test_what_is_no_gramian_gives_nan(G):
    assert dual_cone(G, eye(2), method="fixed").isnan().all()
