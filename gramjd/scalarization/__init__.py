"""Losses into one loss: the baselines that a study of several tasks is compared with, without a second library.

Each is called with the losses of a step, a vector [m] (or a mapping from names), and returns a scalar to call
`backward()` on. What it keeps from step to step is in `state_dict()`.
"""

from typing import TYPE_CHECKING

from gramjd.lazy import attributes
from gramjd.renamed import PLACES
from gramjd.scalarization.dwa import DWA
from gramjd.scalarization.famo import FAMO
from gramjd.scalarization.geometric import GeometricMean
from gramjd.scalarization.gradnorm import GradNorm
from gramjd.scalarization.random import RandomLossWeights
from gramjd.scalarization.tchebycheff import SmoothTchebycheff
from gramjd.scalarization.uncertainty import Uncertainty

__all__ = ["DWA", "FAMO", "GeometricMean", "GradNorm", "RandomLossWeights", "SmoothTchebycheff", "Uncertainty"]

if not TYPE_CHECKING:  # a type checker would take any name for granted
    __getattr__, __dir__ = attributes(__name__, dict.fromkeys(__all__, __name__), foreign=PLACES["scalarization"])
