"""The options of the commands whose modules load torch, so that help and typing errors are answered without it.

One function per command, named in `gramjd.cli.COMMANDS`. What stands in torch's modules as a table stands here as
names; a test compares the two.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

AGGREGATORS = (
    *("UPGrad", "DualProj", "MGDA", "CAGrad", "NashMTL", "FairGrad", "IMTLG", "AlignedMTL", "ConFIG", "PCGrad"),
    *("GradVac", "Random", "Mean", "Sum", "GradDrop"),
)
DEMO_RATES = (0.1, 0.2, 0.4, 0.8, 1.6)
IMAGE_SETS = ("digits", "svhn", "cifar10", "eurosat", "mnist", "fashion", "kmnist")
COST_SETS = ("svhn", "cifar10", "eurosat", "mnist", "digits")
OPTIMIZERS = ("sgd", "adam")
PINN_PROBLEMS = ("poisson-1d", "poisson-2d", "burgers", "wave", "inverse")
PINN_METHODS = ("adam", "lbfgs", "lm", "lm-scaled", "spring")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _aggregators(parser: argparse.ArgumentParser, default: str, text: str) -> None:
    parser.add_argument("--aggregators", "--weightings", dest="weightings", metavar="NAMES", default=default, help=text)


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    return _at_least(1, text)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    return _at_least(0, text)


def pairs(text: str) -> int:
    """A number of images that pairs can be made of: 2 or more."""
    return _at_least(2, text)


def positives(text: str) -> tuple[int, ...]:
    """Whole numbers by commas, 1 or more each.

    >>> positives("8,32")
    (8, 32)
    """
    return tuple(positive(part) for part in text.split(","))


def rate(text: str) -> float:
    """A learning rate: positive and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return value


def seconds(text: str) -> float:
    """A length of time: a number of seconds, or with the unit s, m or h.

    >>> seconds("20m"), seconds("90"), seconds("0")
    (1200.0, 90.0, 0.0)
    """
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a time such as 90s, 20m or 1.5h")
    return value


def rates(text: str) -> tuple[float, ...]:
    """Learning rates by commas.

    >>> rates("0.1,1")
    (0.1, 1.0)
    """
    found = tuple(float(part) for part in text.split(","))
    if not all(0 < rate < math.inf for rate in found):
        raise argparse.ArgumentTypeError(f"got {text}, expected positive numbers separated by commas")
    return found


def nonnegative(text: str) -> float:
    """A finite number, 0 or more."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number, 0 or more")
    return value


def aggregator(text: str) -> str:
    """The class name of an aggregator, from a name in any case.

    >>> aggregator("pcgrad")
    'PCGrad'
    """
    by_lower = {name.lower(): name for name in AGGREGATORS}
    if text.lower() not in by_lower:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one of: {', '.join(AGGREGATORS)}")
    return by_lower[text.lower()]


def demo_iwrm(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd demo iwrm`."""
    parser.add_argument("--batch", type=positive, default=256, help="images per step, one loss each (default: 256)")
    parser.add_argument("--epochs", type=positive, default=10, help="passes over the 1024 images (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the subset, weights and batches (default: 0)")
    parser.add_argument(
        "--aggregator", type=aggregator, default="UPGrad", metavar="NAME", help="beside SGD, such as MGDA, PCGrad, Mean"
    )
    parser.add_argument("--ridge", type=nonnegative, help="of UPGrad; 1e-4 as in the paper's own code (default: 0)")
    parser.add_argument("--rates", type=rates, default=DEMO_RATES, metavar="R,R", help="learning rates, each with both")
    parser.add_argument("--rounds", type=positive, default=30, help="timed steps of each method (default: 30)")
    parser.add_argument("--compile", choices=("default", "graph"), help="train with steps that gramjd.compile makes")
    # These networks are too small to share out: more threads only wait for each other.
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/iwrm"), help="folder for the plot and results.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def demo_pinns(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd demo pinns`."""
    parser.add_argument("--problems", default="all", metavar="NAME,NAME", help=f"among: {', '.join(PINN_PROBLEMS)}")
    parser.add_argument("--methods", default="all", metavar="NAME,NAME", help=f"among: {', '.join(PINN_METHODS)}")
    parser.add_argument("--seeds", type=positive, default=5, help="of points, weights and noise (default: 5)")
    parser.add_argument("--seconds", type=seconds, help="CPU time of a run (default: 5 or 10, by problem)")
    parser.add_argument("--budget", type=seconds, metavar="20m", help="begin no run after this long")
    parser.add_argument("--journal", type=Path, default=Path("runs/pinns.jsonl"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/pinns"), help="folder of the plots")
    parser.add_argument("--no-plots", action="store_true", help="draw nothing; figures of solutions train once more")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def paper_trajectories(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper trajectories`."""
    _aggregators(parser, "all", "names of Table 1 by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random aggregators (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the plots and results")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def paper_properties(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper properties`."""
    parser.add_argument("--examples", type=positive, default=100, help="matrices per cell (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of properties.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def paper_convergence(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper convergence`."""
    _aggregators(parser, "upgrad,dualproj,mgda,mean", "names of Table 1 by commas")
    parser.add_argument("--steps", type=positive, default=1000, help="steps of each run (default: 1000)")
    parser.add_argument("--seeds", type=positive, default=3, help="drawn problems per size (default: 3)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the plot and results")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def paper_iwrm(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper iwrm`."""
    parser.add_argument("--data", choices=IMAGE_SETS, default="digits", help="image set (default: digits)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with a folder of files per set")
    _aggregators(parser, "all", "names of Table 1 by commas, the most important first")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="what does the step (default: sgd)")
    parser.add_argument("--batch", type=positives, default=(32,), metavar="N,N", help="batch sizes")
    parser.add_argument("--epochs", type=positive, help="passes over the images (default: the paper's)")
    parser.add_argument("--rates-from", type=rate, default=1e-5, help="least rate of the first stage")
    parser.add_argument("--rates-to", type=rate, default=1e2, help="greatest rate of the first stage")
    parser.add_argument("--widen", action="store_true", help="go on beyond these while the best rate is the last one")
    parser.add_argument("--fine", type=count, default=50, help="rates of the second stage")
    parser.add_argument("--search-seeds", type=positive, default=8, help="seeds per rate")
    parser.add_argument("--seeds", type=positive, default=8, help="seeds of the best rate")
    parser.add_argument("--budget", type=seconds, default=None, metavar="20m", help="stop after this long")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--rounds", type=positive, default=20, help="timed steps of each aggregator (default: 20)")
    parser.add_argument("--journal", type=Path, default=Path("runs/paper/iwrm.jsonl"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the plots")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def paper_objections(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper objections`."""
    parser.add_argument("--data", choices=IMAGE_SETS, default="digits", help="image set (default: digits)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with a folder of files per set")
    parser.add_argument("--rate", type=rate, default=0.15, help="learning rate of all (default: 0.15)")
    parser.add_argument("--epochs", type=positive, default=8, help="passes over the images (default: 8)")
    parser.add_argument("--seeds", type=positive, default=4, help="runs of each (default: 4)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the plot and results")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of a table")


def paper_tasks(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper tasks`."""
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with the folder mnist of its files")
    parser.add_argument("--methods", metavar="NAMES", default="all", help="by commas, such as sum,famo,upgrad")
    parser.add_argument("--images", type=pairs, default=4096, help="training images, two digits each (default: 4096)")
    parser.add_argument("--batch", type=positive, default=64, help="images per step (default: 64)")
    parser.add_argument("--epochs", type=positive, default=6, help="passes over the images (default: 6)")
    parser.add_argument("--rates-from", type=rate, default=5e-3, help="least rate of the first stage, which can widen")
    parser.add_argument("--rates-to", type=rate, default=2e-2, help="greatest rate of the first stage")
    parser.add_argument("--fine", type=count, default=3, help="rates of the second stage (default: 3)")
    parser.add_argument("--search-seeds", type=positive, default=1, help="seeds per rate (default: 1)")
    parser.add_argument("--seeds", type=positive, default=5, help="seeds of the best rate (default: 5)")
    parser.add_argument("--rounds", type=positive, default=40, help="timed steps of each method (default: 40)")
    parser.add_argument("--budget", type=seconds, default=None, metavar="20m", help="stop after this long")
    parser.add_argument("--threads", type=positive, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("--journal", type=Path, default=Path("runs/paper/tasks.jsonl"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the figure")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")


def paper_cost(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper cost`."""
    parser.add_argument("--sets", default="svhn,cifar10,mnist", help=f"by commas, among: {', '.join(COST_SETS)}")
    _aggregators(parser, "all", "names of Table 1 by commas (default: all)")
    parser.add_argument("--sizes", type=positives, default=(32, 64, 128, 256, 512), help="batch sizes")
    parser.add_argument("--swept", default="cifar10", choices=COST_SETS, help="the set of the second table")
    parser.add_argument("--jacobian-up-to", type=count, default=64, help="batch size; it costs its square")
    parser.add_argument("--rounds", type=positive, default=4, help="timed steps of each (default: 4)")
    parser.add_argument("--compiled", action="store_true", help="compiled steps as well, where a C++ compiler is found")
    parser.add_argument("--quick", action="store_true", help="digits only, batch sizes 32 and 64, a few seconds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=positive, help="threads of PyTorch (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the plot and cost.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")


def paper_all(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd paper all`."""
    parser.add_argument("--data", choices=IMAGE_SETS, default="digits", help="image set of iwrm (default: digits)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with a folder of files per set")
    parser.add_argument("--budget", default="10m", metavar="20m", help="of iwrm, which goes on where it stopped")
    parser.add_argument("--full", action="store_true", help="the paper's sizes and protocol: hours")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of all results and plots")


def calibrate(parser: argparse.ArgumentParser) -> None:
    """Options of `gramjd calibrate`."""
    parser.add_argument("--device", choices=("cpu", "cuda"), action="append", help="default: all that there are")
    parser.add_argument("--output", type=Path, help="file to write; default: gramjd/devices.json in the XDG folder")


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"got {value}, expected {least} or more")
    return value
