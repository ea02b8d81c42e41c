"""Watching conflict during training, from what a step has computed anyway.

monitor = GramMonitor()
for ...:
    monitor.update(gramjd.gram_backward(losses))
    if now_and_then:
        print(monitor.latest())
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from gramjd.compiled.step import StepResult
from gramjd.errors import InputError
from gramjd.options import as_count
from gramjd.step import GramStep

NAMES = (
    "mean_norm",
    "largest_norm",
    "smallest_norm",
    "mean_cosine",
    "smallest_cosine",
    "conflicting_pairs",
    "conflict_depth",
    "effective_rank",
    "cosine_to_mean",
    "length_over_mean",
    "worsened_losses",
    "smallest_weight",
    "largest_weight",
    "smallest_contribution",
    "largest_contribution",
)


class _Step(NamedTuple):
    """What is kept of a step: numbers as `NAMES` has them, and per loss its weight; with names its norm and cosines."""

    at: int
    numbers: Tensor
    weights: Tensor
    names: tuple[str, ...] | None
    norms: Tensor | None
    cosines: Tensor | None


class GramMonitor:
    """Numbers of every step's Gramian and weights, kept on their device until they are asked for.

    With gradients `g_i` (rows of J), `G = J J^T`, cosines `c_ij`, the update `u = J^T w` and the mean `g = J^T 1 / m`:

    - `mean_norm`, `largest_norm`, `smallest_norm`: of the `|g_i|`;
    - `mean_cosine`, `smallest_cosine`: over pairs i < j; gradients of length zero count as orthogonal to all;
    - `conflicting_pairs`: the share of pairs with `c_ij < 0`; `conflict_depth`: the mean of `-c_ij` over those;
    - `effective_rank`: `(tr G)^2 / |G|_F^2`, from 1 (all parallel) to m (orthogonal and equally long);
    - `cosine_to_mean`: of u and g; `length_over_mean`: `|u| / |g|`;
    - `worsened_losses`: the share of losses with `g_i . u < 0` beyond rounding, which the update makes worse to first
      order;
    - `smallest_weight`, `largest_weight`; `smallest_contribution`, `largest_contribution`: of the `w_i |g_i|`, how far
      loss i moves the parameters. A loss that is nearly learnt has a tiny gradient and may get a huge weight; what it
      contributes is what matters.

    Where the losses have names, there are besides, for each, `weight/NAME`, `norm/NAME`, `contribution/NAME`, and
    `cosine/NAME/OTHER` for each pair. Of a loss that is missing in a step they are missing, too, or NaN where `names`
    says that there is one.

    Args:
        window: how many of the last steps are kept, 1 or more.
        names: of all losses that may come.

    Raises:
        InputError: options that are not allowed.

    An update costs a few operations on m x m numbers: no pass over the model and no synchronisation of a GPU.

    >>> monitor = GramMonitor()
    >>> G = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    >>> monitor.update(GramStep(torch.tensor([0.5, 0.5]), G))
    >>> monitor.latest()["conflicting_pairs"], monitor.latest()["conflict_depth"]
    (1.0, 0.5)
    """

    def __init__(self, window: int = 10_000, names: Sequence[str] = ()) -> None:
        """Start with no steps."""
        self.window = as_count(window, "window", 1)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InputError(f"names must be strings, one per loss; got {names!r}")
        self.names = tuple(names)
        self.reset()

    def reset(self) -> None:
        """Forget all steps; the next one is number 0."""
        self.gramian: Tensor | None = None
        self._kept: deque[_Step] = deque(maxlen=self.window)

    @property
    def steps(self) -> list[int]:
        """The numbers of the steps that are kept."""
        return [step.at for step in self._kept]

    def update(self, step: GramStep | StepResult, at: int | None = None) -> None:
        """Take in what `gram_backward` returned.

        Args:
            step: weights [m] and Gramian [m, m], as `gram_backward` or a compiled step gives them.
            at: the number of the step; default: one after the last.
        """
        if isinstance(step, Tensor):
            raise InputError(
                "got a tensor; expected what gram_backward returned. Of a Gramian alone, and the aggregator that is to "
                "be watched, make GramStep(aggregator(G), G)"
            )
        if step is None or step.gramian is None or step.weights is None:
            raise InputError("got None: a coordinatewise aggregator makes no Gramian, so there is nothing to watch")
        G, w = step.gramian.detach(), step.weights.detach()
        if G.ndim != 2 or G.shape != (len(w), len(w)) or not len(w):
            raise InputError(f"got a Gramian of shape {tuple(G.shape)} with {len(w)} weights; expected (m, m) and m")
        names = getattr(step, "names", None)
        at = at if at is not None else self._kept[-1].at + 1 if self._kept else 0
        norms = None if names is None else G.diagonal().clamp_min(0).sqrt()
        self._kept.append(_Step(at, _numbers(G, w.to(G.dtype)), w, names, norms, None if names is None else cosines(G)))
        self.gramian = G

    def wrap(self, backward: Callable[..., GramStep]) -> Callable[..., GramStep]:
        """`gram_backward` or `mtl_backward` with an `update` of this monitor after each call that makes a Gramian."""

        def watched(*args: object, **named: object) -> GramStep:
            step = backward(*args, **named)
            if step is not None:
                self.update(step)
            return step

        return watched

    def latest(self) -> dict[str, float]:
        """The last step's numbers, for any logger. This waits for the device.

        Raises:
            InputError: there was no step yet.
        """
        self._seen()
        return _named(self._kept[-1], self.names)

    def history(self) -> dict[str, list[float]]:
        """Every number of every step that is kept, in order; `step` counts them. NaN where a named loss was missing."""
        rows = [_named(step, self.names) for step in self._kept]
        keys = dict.fromkeys([*NAMES, *(key for row in rows for key in row)])
        columns = {key: [row.get(key, math.nan) for row in rows] for key in keys}
        return {"step": [float(s) for s in self.steps], **columns}

    def weights(self) -> list[list[float]]:
        """The weights of every step that is kept."""
        return [step.weights.tolist() for step in self._kept]

    def cosines(self) -> Tensor:
        """The last step's pairwise cosines [m, m], on the CPU."""
        return cosines(self._seen()).cpu()

    def spectrum(self) -> list[float]:
        """Eigenvalues of the last Gramian, largest first."""
        found: list[float] = torch.linalg.eigvalsh(self._seen().double()).flip(0).tolist()
        return found

    def latest_names(self) -> tuple[str, ...] | None:
        """The names of the last step's losses, if they have some."""
        self._seen()
        return self._kept[-1].names

    def _seen(self) -> Tensor:
        if self.gramian is None:
            raise InputError("the monitor has seen no step yet: call update() with what gram_backward returned")
        return self.gramian


def _named(step: _Step, names: Sequence[str]) -> dict[str, float]:
    """The numbers of a step by their names; those of single losses where they have names (NaN for those not there)."""
    found = dict(zip(NAMES, step.numbers.tolist(), strict=True))
    for name in names:
        found |= dict.fromkeys((f"weight/{name}", f"norm/{name}", f"contribution/{name}"), math.nan)
    found |= {f"cosine/{one}/{other}": math.nan for one, other in combinations(names, 2)}
    if step.names is None or step.norms is None or step.cosines is None:
        return found
    norms, w, C = step.norms.tolist(), step.weights.tolist(), step.cosines.tolist()
    for i, name in enumerate(step.names):
        found |= {f"weight/{name}": w[i], f"norm/{name}": norms[i], f"contribution/{name}": w[i] * norms[i]}
    for i, j in combinations(range(len(w)), 2):
        one, other = step.names[i], step.names[j]
        turned = f"cosine/{other}/{one}"
        found[turned if turned in found else f"cosine/{one}/{other}"] = C[i][j]
    return found


def cosines(G: Tensor) -> Tensor:
    """`G_ij / (|g_i| |g_j|)`, zero where a gradient has length zero."""
    norms = G.diagonal().clamp_min(0).sqrt()
    unit = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return (G * unit[:, None] * unit).clamp(-1, 1)


def _numbers(G: Tensor, w: Tensor) -> Tensor:
    """One number a name, as one tensor on the device: nothing here waits for it."""
    m = len(G)
    size = G.diagonal().amax().clamp_min(torch.finfo(G.dtype).tiny)
    norms = G.diagonal().clamp_min(0).sqrt()
    # `triu` and masks instead of indexing with masks, whose sizes a GPU would have to be asked for.
    above = torch.ones_like(G, dtype=torch.bool).triu(1)
    C = cosines(G).where(above, torch.zeros((), dtype=G.dtype, device=G.device))
    pairs = max(1, m * (m - 1) // 2)
    against = C < 0
    depth = -(C * against).sum() / against.sum().clamp_min(1)
    H = G / size  # squares of tiny gradients would vanish
    rank = H.trace().square() / H.square().sum().clamp_min(torch.finfo(G.dtype).tiny)
    inner = H @ w
    mean = torch.full_like(w, 1 / m)
    length, mean_length = (torch.dot(v, H @ v).clamp_min(0).sqrt() for v in (w, mean))
    product = length * mean_length
    cosine = torch.where(product > 0, torch.dot(mean, inner) / product, torch.zeros_like(product))
    scaled = norms / size.sqrt()
    rounding = m * torch.finfo(torch.float32).eps * scaled * torch.dot(w.abs(), scaled)
    numbers = (
        *(norms.mean(), norms.amax(), norms.amin()),
        *(C.sum() / pairs, C.amin() if m == 1 else C.masked_fill(~above, 1).amin()),
        *(against.sum() / pairs, depth, rank),
        *(cosine.clamp(-1, 1), torch.where(mean_length > 0, length / mean_length, torch.zeros_like(length))),
        *((inner < -rounding).to(G.dtype).mean(), w.amin(), w.amax()),
        *((w * norms).amin(), (w * norms).amax()),
    )
    return torch.stack([n.to(G.dtype) for n in numbers])
