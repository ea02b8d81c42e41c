"""For each property: how far the updates of an aggregator are from it, over what is put down to rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gramjd.errors import InputError
from gramjd.testing.search import Case, Measure, Measured
from gramjd.testing.subject import Subject, Update

# Draws compared where only the average can be the same, and how many standard errors it may be off.
DRAWS = 32
SIGMAS = 6.0
# Singular values of the unit gradients below this part of the largest are taken for zero.
_SPAN = 1e-10


def _update(subject: Subject, case: Case, J: Tensor | None = None) -> Update:
    """`A(J)` for the matrix of the case, or for another one with the same draw and the same past."""
    return subject.update(case["J"] if J is None else J, case["draw"], case.get("past", ()))


def conflict(subject: Subject, case: Case, allowed: float) -> Measured:
    """`-g_i . y` over `|g_i|` times the size of the update, for the worst i."""
    J, u = case["J"].double(), _update(subject, case)
    products, norms = J @ u.y, J.norm(dim=1)
    room = allowed * norms * u.size
    ratios = [_ratio(-float(p), float(r)) for p, r in zip(products, room, strict=True)]
    i = max(range(len(ratios)), key=ratios.__getitem__)
    cosine = float(products[i] / (norms[i] * u.y.norm()))
    text = f"gradient {i} and the update conflict: inner product {products[i]:.4g}, cosine {cosine:.4g}"
    return Measured(ratios[i], text, {"update": u.y})


def nonlinearity(subject: Subject, case: Case, allowed: float) -> Measured:
    """`|A(diag(c + d) J) - A(diag(c) J) - A(diag(d) J)|`, for the same draw."""
    J, c, d = case["J"], case["c"].to(case["J"].dtype), case["d"].to(case["J"].dtype)
    whole, first, second = (_update(subject, case, s[:, None] * J) for s in (c + d, c, d))
    gap = float((whole.y - first.y - second.y).norm())
    text = f"A(diag(c + d) J) and A(diag(c) J) + A(diag(d) J) are {gap:.4g} apart, the first is {_length(whole)} long"
    ratio = _ratio(gap, allowed * (whole.size + first.size + second.size))
    return Measured(ratio, text, {"of_c_plus_d": whole.y, "sum_of_both": first.y + second.y})


def outside_span(subject: Subject, case: Case, allowed: float) -> Measured:
    """The length of what an update has beside its projection on the span of the gradients."""
    J, u = case["J"].double(), _update(subject, case)
    norms = J.norm(dim=1)
    _, s, V = torch.linalg.svd(J[norms > 0] / norms[norms > 0, None], full_matrices=False)
    basis = V[s > _SPAN * s.max()] if len(s) else V[:0]
    rest = u.y - basis.mT @ (basis @ u.y)
    text = f"no combination of the gradients: {float(rest.norm()):.4g} of {_length(u)} lies outside their span"
    return Measured(_ratio(float(rest.norm()), allowed * u.size), text, {"update": u.y})


def order_dependence(subject: Subject, case: Case, allowed: float) -> Measured:
    """`|A(J[order]) - A(J)|`; of the averages over draws, for an aggregator that draws."""
    order = case["order"]
    permuted = {**case, "J": case["J"][order], "past": [past[order] for past in case.get("past", ())]}
    if subject.draws(case["J"], case["draw"], case.get("past", ())):
        return _average_order_dependence(subject, case, permuted, allowed)
    before, after = _update(subject, case), _update(subject, permuted)
    gap = float((after.y - before.y).norm())
    text = f"A(J[order]) and A(J) are {gap:.4g} apart, A(J) is {_length(before)} long"
    shown = {"update": before.y, "update_permuted": after.y}
    return Measured(_ratio(gap, allowed * (before.size + after.size)), text, shown)


def _average_order_dependence(subject: Subject, case: Case, permuted: Case, allowed: float) -> Measured:
    means, errors, sizes = [], [], []
    for first, one in ((0, case), (DRAWS, permuted)):
        updates = [_update(subject, {**one, "draw": case["draw"] + first + k}) for k in range(DRAWS)]
        Y = torch.stack([u.y for u in updates])
        means.append(Y.mean(0))
        errors.append(Y.var(0) / DRAWS)
        sizes.append(max(u.size for u in updates))
    gaps = (means[0] - means[1]).abs()
    room = SIGMAS * (errors[0] + errors[1]).sqrt() + allowed * sum(sizes)
    ratios = [_ratio(float(g), float(r)) for g, r in zip(gaps, room, strict=True)]
    j = max(range(len(ratios)), key=ratios.__getitem__)
    text = (
        f"the averages of A(J[order]) and of A(J) over {DRAWS} draws each are {gaps[j]:.4g} apart in coordinate {j},"
        f" {SIGMAS:g} standard errors are {room[j]:.4g}"
    )
    return Measured(ratios[j], text, {"average": means[0], "average_permuted": means[1]})


def turn(first: Update, second: Update, allowed: float) -> tuple[float, str]:
    """The violation of "the same direction" over the allowed one, and the turn in words.

    Those are the cosine (0 beside an update of zero), or where that would be rounded to 1 the angle.
    """
    lengths = float(first.y.norm()), float(second.y.norm())
    nothing = [n <= allowed * u.size for n, u in zip(lengths, (first, second), strict=True)]
    if all(nothing):
        return 0.0, "cosine 1"
    if any(nothing):
        return math.inf, "cosine 0"
    gap = float((first.y / lengths[0] - second.y / lengths[1]).norm())
    room = allowed * (first.size / lengths[0] + second.size / lengths[1])
    cosine = float(first.y @ second.y) / lengths[0] / lengths[1]
    return _ratio(gap, room), f"cosine {cosine:.6g}" if gap > 0.01 else f"an angle of {gap:.3g} rad"


def scale_dependence(subject: Subject, case: Case, allowed: float) -> Measured:
    """The distance of the unit vectors along `A(s J)` and `A(J)`, for the same draw."""
    plain, scaled = _update(subject, case), _update(subject, case, case["s"] * case["J"])
    ratio, words = turn(plain, scaled, allowed)
    text = f"A(s J) points elsewhere than A(J): {words}, lengths {_length(scaled)} and {_length(plain)}"
    return Measured(ratio, text, {"update": plain.y, "update_scaled": scaled.y})


def inhomogeneity(subject: Subject, case: Case, allowed: float) -> Measured:
    """`|A(s J) / s - A(J)|`, for the same draw."""
    plain, scaled = _update(subject, case), _update(subject, case, case["s"] * case["J"])
    gap = float((scaled.y / case["s"] - plain.y).norm())
    text = f"A(s J) / s and A(J) are {gap:.4g} apart, A(J) is {_length(plain)} long"
    ratio = _ratio(gap, allowed * (plain.size + scaled.size / case["s"]))
    return Measured(ratio, text, {"update": plain.y, "update_scaled": scaled.y})


def distance_to_mean(subject: Subject, case: Case, allowed: float) -> Measured:
    """The distance of the unit vectors along `A(J)` and along the mean of the rows."""
    J, u = case["J"].double(), _update(subject, case)
    mean = Update(J.mean(0), float(J.norm(dim=1).mean()))
    ratio, words = turn(u, mean, allowed)
    text = f"no two gradients conflict, yet the update is no multiple of the mean: {words}"
    return Measured(ratio, text, {"update": u.y, "mean": mean.y})


def movement(subject: Subject, case: Case, allowed: float) -> Measured:
    """`|A(J)|` over the size of its terms."""
    u = _update(subject, case)
    text = f"no direction helps a loss but at another's cost, yet the update is {_length(u)} long, not zero"
    return Measured(_ratio(float(u.y.norm()), allowed * u.size), text, {"update": u.y})


def repetition(subject: Subject, case: Case, allowed: float) -> Measured:
    """The larger difference of calls of one and the same copy with J."""
    J, draw, past = case["J"], case["draw"], case.get("past", ())
    with subject.session(draw, past) as call:
        first, again = call(J), call(J)
    with subject.session(draw, past) as call:
        call(J + 1)
        later = call(J)
    gaps = [float((other.y - first.y).norm()) for other in (again, later)]
    k = int(gaps[1] > gaps[0])
    other = (again, later)[k]
    what = ("a second call with the same J", "a call with J after one with J + 1")[k]
    text = f"{what} is {gaps[k]:.4g} away from a first call, whose update is {_length(first)} long"
    shown = {"first_update": first.y, "other_update": other.y}
    return Measured(_ratio(gaps[k], allowed * (first.size + other.size)), text, shown)


def disagreement(reference: Subject) -> Measure:
    """The measure `|A(J) - B(J)|` for the other implementation B, with the same seeds."""

    def measure(subject: Subject, case: Case, allowed: float) -> Measured:
        mine, other = _update(subject, case), _update(reference, case)
        if mine.y.shape != other.y.shape:
            raise InputError(f"the updates have lengths {len(mine.y)} and {len(other.y)}: nothing to compare")
        gap = float((mine.y - other.y).norm())
        text = f"{gap:.4g} away from the update of {reference.name}, which is {_length(other)} long"
        ratio = _ratio(gap, allowed * (mine.size + other.size))
        return Measured(ratio, text, {"update": mine.y, "reference_update": other.y})

    return measure


def _ratio(violation: float, room: float) -> float:
    if violation <= 0:
        return 0.0
    return violation / room if room > 0 else math.inf


def _length(u: Update) -> str:
    return f"{float(u.y.norm()):.4g}"
