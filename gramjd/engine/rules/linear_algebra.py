"""Linear algebra: solutions of linear systems, decompositions, distances.

Matrices of a batch are apart. So are the right-hand sides of one system: a matrix that they share has a row for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gramjd.engine.node import NodeView, Rule, Sends
from gramjd.engine.rules.vocabulary import DimMap, apart, batch_leading, named


def _lead(shape: Sequence[int], target: Sequence[int], behind: int = 2) -> DimMap:
    """Batch dimensions of an output with two more, in an operand with `behind` more; broadcast ones are left out."""
    count, own = len(shape) - 2, len(target) - behind
    pairs = ((d, d - count + own) for d in range(count))
    return {d: e for d, e in pairs if e >= 0 and target[e] == shape[d]}


def _solution(node: NodeView, matrix: int, given: int, sides_last: bool) -> Sends:
    """x of a system with a matrix [*, n, n] at one edge and right-hand sides [*, n, k] (or [*, k, n]) at another."""
    shape = node.output().shape
    maps: list[DimMap | None] = [None] * len(node.inputs)
    if node.wants(matrix):
        maps[matrix] = _lead(shape, node.input(matrix).shape)
    if node.wants(given):
        target, side = node.input(given).shape, len(shape) - (1 if sides_last else 2)
        maps[given] = _lead(shape, target) | ({side: side} if target == shape else {})
    return apart(lambda _: maps)(node)


def solve(node: NodeView) -> Sends:
    """X of A X = B or X A = B; B may be a vector per matrix."""
    shape = node.output().shape
    matrices = node.input(0).shape if node.wants(0) else node.saved("LU").shape
    if len(shape) == len(matrices) - 1:
        lead = range(len(shape) - 1)
        return apart(lambda v: [{d: d for d in lead} if v.wants(e) else None for e in range(len(v.inputs))])(node)
    return _solution(node, 0, 1, bool(node.saved("left")))


def solve_one_way(node: NodeView) -> Sends:
    """X of A X = B or X A = B, for a triangular A, or from a decomposition of A."""
    return _solution(node, 0, 1, bool(node.saved("left")))


def cdist(node: NodeView) -> Sends:
    """Distances [*, P, R] of rows x1 [*, P, d] and x2 [*, R, d], each of which has its own."""
    shape = node.output().shape
    lead = len(shape) - 2
    maps: list[DimMap | None] = [None, None]
    for edge in node.wanted:
        target = node.input(edge).shape
        alike = len(target) == len(shape) and target[:-2] == shape[:-2]
        maps[edge] = _lead(shape, target) | ({lead + edge: lead} if alike else {})
    return apart(lambda _: maps)(node)


def _of_output(node: NodeView) -> int:
    """Batch dimensions of a result [*, p, q]."""
    return len(node.output().shape) - 2


def _of_input(node: NodeView) -> int:
    """Batch dimensions of what is made of matrices [*, p, q]."""
    return len(node.input(0).shape) - 2


_MATRICES = """
    CholeskyInverse LinalgCholeskyEx LinalgHouseholderProduct LinalgInvEx LinalgLstsq LinalgMatrixExp LinalgQr Ormqr
"""
_DECOMPOSED = "LinalgDet LinalgEig LinalgEigh LinalgLu LinalgLuFactorEx LinalgPinv LinalgSlogdet LinalgSvd"

RULES: dict[str, Rule] = {
    **named("Cdist", cdist),
    **named("CholeskySolve", partial(_solution, matrix=1, given=0, sides_last=True)),
    **named("LinalgLuSolve LinalgSolveTriangular", solve_one_way),
    **named("LinalgSolveEx", solve),
    **named(_MATRICES, batch_leading(_of_output)),
    **named(_DECOMPOSED, batch_leading(_of_input)),
}
