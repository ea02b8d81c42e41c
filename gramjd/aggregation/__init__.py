"""Aggregators: from the Gramian `G = J J^T` of the losses to the weights `w` of the update `J^T w`."""

from typing import TYPE_CHECKING

from gramjd.aggregation._coordinatewise import Coordinatewise
from gramjd.aggregation._loss_weighting import LossWeighting
from gramjd.aggregation._weighting import Weighting
from gramjd.aggregation.alignedmtl import AlignedMTL
from gramjd.aggregation.cagrad import CAGrad
from gramjd.aggregation.config import ConFIG
from gramjd.aggregation.constant import Constant
from gramjd.aggregation.crmogm import CRMOGM
from gramjd.aggregation.dualproj import DualProj
from gramjd.aggregation.excessmtl import ExcessMTL
from gramjd.aggregation.fairgrad import FairGrad
from gramjd.aggregation.gaussnewton import GaussNewton
from gramjd.aggregation.graddrop import GradDrop
from gramjd.aggregation.gradvac import GradVac
from gramjd.aggregation.imtlg import IMTLG
from gramjd.aggregation.krum import Krum
from gramjd.aggregation.mean import Mean
from gramjd.aggregation.mgda import MGDA
from gramjd.aggregation.modo import MoDo
from gramjd.aggregation.nashmtl import NashMTL
from gramjd.aggregation.nested import Nested
from gramjd.aggregation.pcd import PCD
from gramjd.aggregation.pcgrad import PCGrad
from gramjd.aggregation.random import Random
from gramjd.aggregation.sdmgrad import SDMGrad
from gramjd.aggregation.sum import Sum
from gramjd.aggregation.sven import Sven
from gramjd.aggregation.trimmedmean import TrimmedMean
from gramjd.aggregation.upgrad import UPGrad
from gramjd.lazy import attributes
from gramjd.renamed import PLACES

__all__ = [
    "CRMOGM",
    "IMTLG",
    "MGDA",
    "PCD",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "Constant",
    "Coordinatewise",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "GaussNewton",
    "GradDrop",
    "GradVac",
    "Krum",
    "LossWeighting",
    "Mean",
    "MoDo",
    "NashMTL",
    "Nested",
    "PCGrad",
    "Random",
    "SDMGrad",
    "Sum",
    "Sven",
    "TrimmedMean",
    "UPGrad",
    "Weighting",
]

if not TYPE_CHECKING:  # a type checker would take any name for granted
    __getattr__, __dir__ = attributes(__name__, dict.fromkeys(__all__, __name__), foreign=PLACES["aggregation"])
