"""The naive Jacobian that everything is compared with: one backward pass per loss, rows kept in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.zoo.registry import Case

Losses = Tensor | Sequence[Tensor]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def flatten(losses: Losses) -> list[Tensor]:
    """Every entry of ``losses`` as a scalar, in row-major order and in the order of the sequence."""
    tensors = [losses] if isinstance(losses, Tensor) else list(losses)
    return [scalar for tensor in tensors for scalar in tensor.reshape(-1).unbind(0)]


def leaves(losses: Losses) -> list[Tensor]:
    """All leaves that require a gradient and that ``losses`` reach, in the order of first sight."""
    tensors = [losses] if isinstance(losses, Tensor) else list(losses)
    found: dict[int, Tensor] = {id(t): t for t in tensors if t.requires_grad and t.is_leaf}
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):
            found.setdefault(id(node.variable), node.variable)
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return list(found.values())


def oracle_jacobian(losses: Losses, inputs: Sequence[Tensor]) -> list[Tensor]:
    """``J_p`` as ``[m, *p.shape]`` in float64, for every ``p`` of ``inputs``; the graph stays usable."""
    scalars = flatten(losses)
    rows: list[list[Tensor]] = [[] for _ in inputs]
    for scalar in scalars:
        grads: Sequence[Tensor | None] = [None] * len(inputs)
        if scalar.requires_grad:
            grads = torch.autograd.grad(scalar, list(inputs), retain_graph=True, allow_unused=True)
        for row, grad, tensor in zip(rows, grads, inputs, strict=True):
            row.append(_as_float64(grad, tensor))
    return [torch.stack(row) for row in rows]


def _as_float64(grad: Tensor | None, like: Tensor) -> Tensor:
    wide = torch.complex128 if like.is_complex() else torch.float64
    if grad is None:
        return torch.zeros(like.shape, dtype=wide)
    return (grad.to_dense() if grad.layout != torch.strided else grad).to(wide)


def oracle_gramian(losses: Losses, inputs: Sequence[Tensor] | None = None) -> Tensor:
    """``G = sum_p J_p J_p^T``, ``[m, m]`` in float64."""
    inputs = leaves(losses) if inputs is None else inputs
    m = len(flatten(losses))
    gramian = torch.zeros(m, m, dtype=torch.float64)
    for jacobian in oracle_jacobian(losses, inputs):
        flat = torch.view_as_real(jacobian) if jacobian.is_complex() else jacobian
        flat = flat.reshape(m, -1)
        gramian += flat @ flat.T
    return gramian


def relative_error(a: Tensor, b: Tensor) -> float:
    """``|a - b|_F / |b|_F`` in float64 (``b`` is the reference)."""
    a, b = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    scale = b.norm().item()
    return (a - b).norm().item() / (scale if scale > 0 else 1.0)


def tolerance(case: Case, dtype: torch.dtype) -> float:
    """The largest relative error allowed for ``case`` in ``dtype``."""
    return max(TOLERANCE[dtype], case.tol or 0.0)


def assert_close_gramian(got: Tensor, expected: Tensor, limit: float, label: str = "") -> None:
    """Relative Frobenius error at most ``limit``; a mismatch names the worst entry."""
    assert got.shape == expected.shape, f"{label}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    error = relative_error(got, expected)
    if error <= limit:
        return
    wide = got.detach().to("cpu", torch.float64)
    gap = (wide - expected).abs().nan_to_num(nan=float("inf"))
    i, j = divmod(int(gap.argmax()), expected.shape[1])
    g, e = wide[i, j].item(), expected[i, j].item()
    ratio = g / e if e else float("nan")
    off = int((gap > limit * expected.abs().max()).sum())
    raise AssertionError(
        f"{label}: relative error {error:.3e} > tolerance {limit:.1e}; {off} of {gap.numel()} entries are off; "
        f"worst at [{i}, {j}]: got {g:.10e}, expected {e:.10e}, ratio {ratio:.6f}"
    )


def assert_gramian(case: Case, dtype: torch.dtype) -> tuple[Losses, Sequence[Tensor] | None]:
    """Build ``case``, compare ``gramjd.gramian`` with the oracle on the same graph, and return losses and inputs."""
    import gramjd

    losses, inputs = case.make(dtype)
    got = gramjd.gramian(losses, inputs=inputs)
    assert_close_gramian(got, oracle_gramian(losses, inputs), tolerance(case, dtype), f"{case.name} ({dtype})")
    return losses, inputs
