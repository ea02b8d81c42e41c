"""Solvers for the small convex problems behind the weightings."""

from gramjd.aggregation.solvers.dual_cone import dual_cone

__all__ = ["dual_cone"]
