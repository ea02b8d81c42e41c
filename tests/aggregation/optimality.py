"""The exact optimality test of a dual-cone projection, and Gramians of every awkward kind to try it on."""

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = (
    "full",
    "wide",
    "low",
    "rank one",
    "duplicates",
    "opposites",
    "half space",
    "almost equal",
    "zero rows",
    "zero",
    "decay",
)


def assert_optimal(G: Tensor, U: Tensor, W: Tensor, tol: float = 1e-8) -> None:
    """`w >= u`, `G w >= 0` and `u^T G w = w^T G w` for each row, in units of `|g_j| |J^T u|` and `|J^T u|^2`.

    What a float64 evaluation of these expressions must lose by itself (a few eps of the sum of their terms) passes.
    """
    G, U = G.double(), U.double()
    norms = G.diagonal().clamp_min(0).sqrt()
    assert (U <= W).all()
    Y = W @ G
    size = ((U @ G) * U).sum(1).clamp_min(0).sqrt()
    terms = (W * norms).sum(1)
    noise = 8 * torch.finfo(torch.float64).eps * terms
    low = Y + (tol * size + noise)[:, None] * norms
    assert (low >= 0).all(), f"G w = {Y.min().item():.3e} for row {divmod(int(low.argmin()), len(G))}"
    gap = ((W - U) * Y).sum(1).abs()
    assert (gap <= tol * size**2 + noise * terms).all(), f"u G w - w G w = {gap.max().item():.3e}"


def jacobian(kind: str, m: int, seed: int) -> Tensor:
    """A Jacobian [m, n] of the kind."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    twice = torch.arange(m) % max((m + 1) // 2, 1)
    sign = torch.where(torch.arange(m) < (m + 1) // 2, 1.0, -1.0).double()[:, None]
    makers = {
        "full": lambda: randn(m, m + 1),
        "wide": lambda: randn(m, 4 * m + 1),
        "low": lambda: randn(m, m // 2 + 1),
        "rank one": lambda: randn(m, 1) @ randn(1, 5),
        "duplicates": lambda: randn(m, m + 1)[twice],
        "opposites": lambda: sign * randn(m, m + 1)[twice],
        "half space": lambda: torch.cat([randn(m, 1).abs() * 0.3, randn(m, m // 3 + 2)], 1),
        "almost equal": lambda: randn(m, m + 1)[twice] + 1e-4 * randn(m, m + 1),
        "zero rows": lambda: randn(m, m + 1) * (randn(m, 1) > 0),
        "zero": lambda: torch.zeros(m, 3, dtype=torch.float64),
        "decay": lambda: randn(m, m) * torch.logspace(0, -6, max(m, 1), dtype=torch.float64)[:m],
    }
    return makers[kind]()


@st.composite
def jacobians(draw: st.DrawFn) -> Tensor:
    """A Jacobian of any kind, up to 14 rows, of any overall scale, its rows scaled as badly as they come."""
    m = draw(st.integers(0, 14))
    J = jacobian(draw(st.sampled_from(KINDS)), m, draw(st.integers(0, 10**6)))
    exponents = draw(st.lists(st.floats(-8, 8), min_size=m, max_size=m) if draw(st.booleans()) else st.just([0.0] * m))
    rows = 10.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]
    return J * rows * 10.0 ** draw(st.sampled_from([0, 0, -30, -15, 15, 30]))
