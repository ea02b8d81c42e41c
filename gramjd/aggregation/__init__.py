"""Weightings: from the Gramian `G = J J^T` of the losses to the weights `w` of the update `J^T w`."""

from gramjd.aggregation._weighting import Weighting
from gramjd.aggregation.cagrad import CAGrad
from gramjd.aggregation.constant import Constant
from gramjd.aggregation.dualproj import DualProj
from gramjd.aggregation.mean import Mean
from gramjd.aggregation.mgda import MGDA
from gramjd.aggregation.sum import Sum
from gramjd.aggregation.upgrad import UPGrad

__all__ = [
    "MGDA",
    "CAGrad",
    "Constant",
    "DualProj",
    "Mean",
    "Sum",
    "UPGrad",
    "Weighting",
]
