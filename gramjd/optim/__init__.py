"""Optimizers for least squares in the space of the residuals: Levenberg-Marquardt, and SPRING."""

from gramjd.optim.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtStep
from gramjd.optim.spring import SPRING, SPRINGStep

__all__ = ["SPRING", "LevenbergMarquardt", "LevenbergMarquardtStep", "SPRINGStep"]
