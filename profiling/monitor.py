"""Watching conflict during training, from what a step has computed anyway.

monitor = GramMonitor()
for ...:
    monitor.update(gramjd.gram_backward(losses))
    if now_and_then:
        print(monitor.latest())
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gramjd.backward import GramStep
from gramjd.compiled.step import StepResult
from gramjd.errors import InputError

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
)


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
    - `smallest_weight`, `largest_weight`.

    An update costs a few operations on m x m numbers: no pass over the model and no synchronisation of a GPU.

    >>> monitor = GramMonitor()
    >>> G = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    >>> monitor.update(GramStep(torch.tensor([0.5, 0.5]), G))
    >>> monitor.latest()["conflicting_pairs"], monitor.latest()["conflict_depth"]
    (1.0, 0.5)
    """

    def __init__(self) -> None:
        """Start with no steps."""
        self.steps: list[int] = []
        self.gramian: Tensor | None = None
        self._rows: list[Tensor] = []
        self._weights: list[Tensor] = []

    def update(self, step: GramStep | StepResult, at: int | None = None) -> None:
        """Take in what `gram_backward` returned.

        Args:
            step: weights [m] and Gramian [m, m], as `gram_backward` or a compiled step gives them.
            at: the number of the step; default: one after the last.
        """
        if step is None or step.gramian is None or step.weights is None:
            raise InputError("got None: a coordinatewise aggregator makes no Gramian, so there is nothing to watch")
        G, w = step.gramian.detach(), step.weights.detach()
        if G.ndim != 2 or G.shape != (len(w), len(w)) or not len(w):
            raise InputError(f"got a Gramian of shape {tuple(G.shape)} with {len(w)} weights; expected (m, m) and m")
        self.steps.append(at if at is not None else self.steps[-1] + 1 if self.steps else 0)
        self._rows.append(_numbers(G, w.to(G.dtype)))
        self._weights.append(w)
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
        return dict(zip(NAMES, self._last(self._rows).tolist(), strict=True))

    def history(self) -> dict[str, list[float]]:
        """Every number of every step, in order; `step` counts them."""
        columns = torch.stack(self._rows).T.tolist() if self._rows else [[] for _ in NAMES]
        return {"step": [float(s) for s in self.steps], **dict(zip(NAMES, columns, strict=True))}

    def weights(self) -> list[list[float]]:
        """The weights of every step."""
        return [w.tolist() for w in self._weights]

    def cosines(self) -> Tensor:
        """The last step's pairwise cosines [m, m], on the CPU."""
        return cosines(self._last([self.gramian] if self.gramian is not None else [])).cpu()

    def spectrum(self) -> list[float]:
        """Eigenvalues of the last Gramian, largest first."""
        G = self._last([self.gramian] if self.gramian is not None else [])
        return torch.linalg.eigvalsh(G.double()).flip(0).tolist()

    def _last(self, found: list[Tensor]) -> Tensor:
        if not found:
            raise InputError("the monitor has seen no step yet: call update() with what gram_backward returned")
        return found[-1]


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
    )
    return torch.stack([n.to(G.dtype) for n in numbers])
