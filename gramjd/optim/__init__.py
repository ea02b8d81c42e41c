"""Optimizers for least squares in the space of the residuals: Levenberg-Marquardt, and SPRING."""

from typing import TYPE_CHECKING

from gramjd.lazy import attributes
from gramjd.optim.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtStep
from gramjd.optim.spring import SPRING, SPRINGStep
from gramjd.renamed import PLACES

__all__ = ["SPRING", "LevenbergMarquardt", "LevenbergMarquardtStep", "SPRINGStep"]

if not TYPE_CHECKING:  # a type checker would take any name for granted
    __getattr__, __dir__ = attributes(__name__, dict.fromkeys(__all__, __name__), foreign=PLACES["optim"])
