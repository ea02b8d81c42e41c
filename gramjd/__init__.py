"""Jacobian descent at the price of gradient descent.

`gram_backward(losses, UPGrad())` stands where `losses.mean().backward()` stood. Names are imported at their first use,
so that `import gramjd` costs nothing and the command line can print its help without loading torch.
"""

from typing import TYPE_CHECKING

from gramjd.lazy import attributes
from gramjd.renamed import NAMES

if TYPE_CHECKING:
    from gramjd._explain import Explanation, explain
    from gramjd.accumulator import Accumulator
    from gramjd.aggregation import (
        CRMOGM,
        IMTLG,
        MGDA,
        PCD,
        AlignedMTL,
        CAGrad,
        ConFIG,
        Constant,
        DualProj,
        ExcessMTL,
        FairGrad,
        GaussNewton,
        GradDrop,
        GradVac,
        Krum,
        Mean,
        MoDo,
        NashMTL,
        Nested,
        PCGrad,
        Random,
        SDMGrad,
        Sum,
        Sven,
        TrimmedMean,
        UPGrad,
    )
    from gramjd.aggregation.byname import ByName
    from gramjd.backward import gram_backward
    from gramjd.compiled.capture import capture
    from gramjd.compiled.step import StepResult, compile
    from gramjd.extend import register_rule, unregister_rule
    from gramjd.gramians import gradient_norms, gramian
    from gramjd.multitask import mtl_backward
    from gramjd.step import GramStep

__all__ = [
    "CRMOGM",
    "IMTLG",
    "MGDA",
    "PCD",
    "Accumulator",
    "AlignedMTL",
    "ByName",
    "CAGrad",
    "ConFIG",
    "Constant",
    "DualProj",
    "ExcessMTL",
    "Explanation",
    "FairGrad",
    "GaussNewton",
    "GradDrop",
    "GradVac",
    "GramStep",
    "Krum",
    "Mean",
    "MoDo",
    "NashMTL",
    "Nested",
    "PCGrad",
    "Random",
    "SDMGrad",
    "StepResult",
    "Sum",
    "Sven",
    "TrimmedMean",
    "UPGrad",
    "capture",
    "compile",
    "explain",
    "gradient_norms",
    "gram_backward",
    "gramian",
    "mtl_backward",
    "register_rule",
    "unregister_rule",
]
__version__ = "0.2.0"

_HOMES = {
    "Accumulator": "gramjd.accumulator",
    "ByName": "gramjd.aggregation.byname",
    "Explanation": "gramjd._explain",
    "GramStep": "gramjd.step",
    "StepResult": "gramjd.compiled.step",
    "capture": "gramjd.compiled.capture",
    "compile": "gramjd.compiled.step",
    "explain": "gramjd._explain",
    "gradient_norms": "gramjd.gramians",
    "gram_backward": "gramjd.backward",
    "gramian": "gramjd.gramians",
    "mtl_backward": "gramjd.multitask",
    "register_rule": "gramjd.extend",
    "unregister_rule": "gramjd.extend",
}

if not TYPE_CHECKING:  # a type checker would take any name for granted
    __getattr__, __dir__ = attributes(
        __name__,
        {name: _HOMES.get(name, "gramjd.aggregation") for name in __all__},
        # With one of the inner packages the whole library is loaded, so that gramjd.kernels.cost is there.
        {
            **dict.fromkeys(("aggregation", "engine", "kernels"), "gramjd.multitask"),
            "compiled": "gramjd.compiled.step",
            "distributed": "gramjd.distributed.step",
            "errors": "gramjd.errors",
            "extend": "gramjd.extend",
            "integrations": "gramjd.integrations",
            "optim": "gramjd.optim",
            "profiling": "gramjd.profiling",
            "scalarization": "gramjd.scalarization",
        },
        NAMES,
    )
