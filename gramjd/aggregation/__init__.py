"""Weightings: from the Gramian `G = J J^T` of the losses to the weights `w` of the update `J^T w`."""

from gramjd.aggregation._weighting import Weighting
from gramjd.aggregation.alignedmtl import AlignedMTL
from gramjd.aggregation.cagrad import CAGrad
from gramjd.aggregation.config import ConFIG
from gramjd.aggregation.constant import Constant
from gramjd.aggregation.dualproj import DualProj
from gramjd.aggregation.fairgrad import FairGrad
from gramjd.aggregation.gradvac import GradVac
from gramjd.aggregation.imtlg import IMTLG
from gramjd.aggregation.krum import Krum
from gramjd.aggregation.mean import Mean
from gramjd.aggregation.mgda import MGDA
from gramjd.aggregation.nashmtl import NashMTL
from gramjd.aggregation.pcgrad import PCGrad
from gramjd.aggregation.random import Random
from gramjd.aggregation.sum import Sum
from gramjd.aggregation.upgrad import UPGrad

__all__ = [
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "Constant",
    "DualProj",
    "FairGrad",
    "GradVac",
    "Krum",
    "Mean",
    "NashMTL",
    "PCGrad",
    "Random",
    "Sum",
    "UPGrad",
    "Weighting",
]
