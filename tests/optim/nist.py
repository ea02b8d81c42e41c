"""The nonlinear regression problems of NIST's Statistical Reference Datasets, all 27 of them.

`nist.json` holds what the published files state: two starts, the certified parameters and sum of squares, the data.
Source: National Institute of Standards and Technology, Statistical Reference Datasets, nonlinear least squares
regression (1999), https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml; a work of the US government.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Model = Callable[[Sequence[Tensor], Tensor], Tensor]


def rational(b: Sequence[Tensor], x: Tensor) -> Tensor:
    """Of two polynomials, the upper one with one coefficient more; the lower begins with 1."""
    above, below = b[: (len(b) + 1) // 2], b[(len(b) + 1) // 2 :]
    upper = sum(c * x**k for k, c in enumerate(above))
    return upper / (1 + sum(c * x ** (k + 1) for k, c in enumerate(below)))


def saturating(b: Sequence[Tensor], x: Tensor) -> Tensor:
    return b[0] * (1 - torch.exp(-b[1] * x))


def decaying_over_line(b: Sequence[Tensor], x: Tensor) -> Tensor:
    return torch.exp(-b[0] * x) / (b[1] + b[2] * x)


def two_peaks(b: Sequence[Tensor], x: Tensor) -> Tensor:
    peaks = [b[k] * torch.exp(-((x - b[k + 1]) ** 2) / b[k + 2] ** 2) for k in (2, 5)]
    return b[0] * torch.exp(-b[1] * x) + peaks[0] + peaks[1]


def three_decays(b: Sequence[Tensor], x: Tensor) -> Tensor:
    return sum(b[k] * torch.exp(-b[k + 1] * x) for k in (0, 2, 4))


def seasons(b: Sequence[Tensor], x: Tensor) -> Tensor:
    waves = [(b[1], b[2], 12), (b[4], b[5], b[3]), (b[7], b[8], b[6])]
    turns = [(u, v, 2 * math.pi * x / period) for u, v, period in waves]
    return b[0] + sum(u * torch.cos(t) + v * torch.sin(t) for u, v, t in turns)


MODELS: dict[str, Model] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": saturating,
    "Chwirut1": decaying_over_line,
    "Chwirut2": decaying_over_line,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": seasons,
    "Eckerle4": lambda b, x: b[0] / b[1] * torch.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": two_peaks,
    "Gauss2": two_peaks,
    "Gauss3": two_peaks,
    "Hahn1": rational,
    "Kirby2": rational,
    "Lanczos1": three_decays,
    "Lanczos2": three_decays,
    "Lanczos3": three_decays,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
    "Misra1a": saturating,
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[:, 0] * torch.exp(-b[2] * x[:, 1]),
    "Rat42": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - torch.arctan(b[2] / (x - b[3])) / math.pi,
    "Thurber": rational,
}


@dataclass(frozen=True)
class Problem:
    """One data set: `residuals(b)` is model minus data."""

    model: Model
    x: Tensor
    y: Tensor
    starts: list[list[float]]
    certified: list[float]
    sum_of_squares: float

    def residuals(self, b: Sequence[Tensor]) -> Tensor:
        return self.model(b, self.x) - self.y

    def digits(self, b: Sequence[float]) -> float:
        """Correct digits of the least correct parameter, of the eleven that are certified."""
        errors = [abs(found - true) / abs(true) for found, true in zip(b, self.certified, strict=True)]
        return min(11.0, -math.log10(max(*errors, 1e-16)))


def _problem(name: str, entry: dict) -> Problem:
    data = torch.tensor(entry["data"], dtype=torch.float64)
    y, x = data[:, 0], data[:, 1:] if data.shape[1] > 2 else data[:, 1]
    y = y.log() if name == "Nelson" else y
    return Problem(MODELS[name], x, y, entry["starts"], entry["certified"], entry["rss"])


_ENTRIES = json.loads((Path(__file__).parent / "nist.json").read_text())
PROBLEMS = {name: _problem(name, entry) for name, entry in _ENTRIES.items()}
