"""Measured constants of devices, per kind of CPU, and the library that large products are computed by there.

`devices.json` ships those of CPUs that were measured; the last entry is for every other CPU. `gramjd calibrate`
measures those of this machine and writes a file of the same form, and `load` puts that file to use:

    {"cpu": {"vendor": "AuthenticAMD", "family": 26, "model": 2}, "products": "onednn",
     "devices": {"cpu": {"float32": {"flops": 1.1e11, "half": 2.8, "elements": 2.5e10, "call": 9e-7}}}}

`products` is a choice that the file states: `"onednn"` or `"torch"`. `"about"` is a remark. A file with constants of a
GPU has its name under `"gpu"`. The operations whose kernels are worth taking stand under `"kernels"`, per architecture:

    {..., "kernels": {"sm_90": ["outer.product", "rows"]}}
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from gramjd.errors import GramjdError
from gramjd.kernels.machine import Cpu, this_cpu
from gramjd.kernels.table import operations

SHIPPED = Path(__file__).with_name("devices.json")
LIBRARIES = ("torch", "onednn")


class Constants(NamedTuple):
    """What was measured of one device and dtype.

    In this order: operations per second of large products, the size of a matrix that halves them, elements moved
    through memory per second, seconds per call; then operations per second and seconds per call of oneDNN, which are 0
    where it is not used or was not measured.
    """

    flops: float
    half: float
    elements: float
    call: float
    onednn_flops: float = 0.0
    onednn_call: float = 0.0


Table = Mapping[str, Mapping[str, Constants]]
# Architectures to operations.
Kernels = Mapping[str, tuple[str, ...]]


class Measured(NamedTuple):
    """One file, or one entry of `devices.json`. `cpu` is None in the entry for every other CPU."""

    cpu: Cpu | None
    products: str
    devices: Table
    gpu: str | None = None
    about: str = ""
    kernels: Kernels = MappingProxyType({})

    def to_dict(self) -> dict[str, Any]:
        """The form that is written to a file."""
        named = {"about": self.about, "cpu": self.cpu and self.cpu._asdict(), "gpu": self.gpu}
        named |= {"kernels": {architecture: list(names) for architecture, names in self.kernels.items()}}
        plain = {device: {dtype: c._asdict() for dtype, c in of.items()} for device, of in self.devices.items()}
        return {name: value for name, value in named.items() if value} | {"products": self.products, "devices": plain}


def parsed(data: Any) -> Measured:
    """The content of a file, from its JSON.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not of that form, or a number is out of range.
    """
    devices = {device: {dtype: Constants(**c) for dtype, c in of.items()} for device, of in data["devices"].items()}
    for constants in (c for of in devices.values() for c in of.values()):
        usable = all(math.isfinite(number) and number >= 0 for number in constants)
        if not usable or not (constants.flops > 0 and constants.elements > 0):
            raise ValueError(f"{constants} are no rates and times")
    products = data["products"]
    if products not in LIBRARIES:
        raise ValueError(f"products are {products!r}, and not one of {', '.join(LIBRARIES)}")
    cpu = Cpu(**data["cpu"]) if "cpu" in data else None
    return Measured(cpu, products, devices, data.get("gpu"), data.get("about", ""), _kernels(data.get("kernels", {})))


def _kernels(given: Mapping[str, Any]) -> Kernels:
    for architecture, names in given.items():
        if not re.fullmatch(r"sm_\d+", architecture):
            raise ValueError(f'kernels are of {architecture!r}, and an architecture is named like "sm_90"')
        if not isinstance(names, list) or not set(names) <= set(operations()):
            raise ValueError(f"kernels of {architecture} are {names!r}; expected some of {', '.join(operations())}")
    return {architecture: tuple(names) for architecture, names in given.items()}


def read(path: Path) -> Measured:
    """What a file of `gramjd calibrate` holds.

    Raises:
        GramjdError: the file cannot be read, is of another form, or does not name its CPU.
    """
    try:
        found = parsed(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GramjdError(f"got {path}, which holds no constants ({error}); write one with: gramjd calibrate") from None
    if found.cpu is None:
        raise GramjdError(f"got {path}, which does not name its CPU; write one that does with: gramjd calibrate")
    return found


def user_file() -> Path:
    """Where `gramjd calibrate` writes by default: `gramjd/devices.json` in the XDG configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "gramjd" / "devices.json"


def load(path: Path | None = None) -> None:
    """Use, from now on, the constants, kernels and choice of products in `path` (default: `user_file()`).

    Devices and dtypes that the file does not have keep their constants, other architectures their kernels. A later
    call replaces an earlier one.

    Raises:
        GramjdError: the file cannot be read, or was made for another CPU or another GPU than this machine's.
    """
    global _loaded
    path = path or user_file()
    found = read(path)
    if found.cpu != this_cpu():
        raise GramjdError(
            f"got {path}, which was made for another CPU: {found.cpu}, and this one is {this_cpu()}; "
            "measure this machine with: gramjd calibrate"
        )
    gpu = this_gpu()
    if found.gpu and gpu and found.gpu != gpu:
        raise GramjdError(
            f"got {path}, which was made for another GPU: {found.gpu}, and this one is {gpu}; "
            "measure this machine with: gramjd calibrate"
        )
    _loaded = found


def this_gpu() -> str | None:
    """The name of the first CUDA device, if there is one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def loaded() -> Measured | None:
    """The user's own file, after `load`."""
    return _loaded


def shipped(cpu: Cpu) -> Measured:
    """The entry of `devices.json` for a CPU, or that for every other CPU, whose `cpu` is None."""
    return next((entry for entry in ENTRIES if entry.cpu == cpu), ENTRIES[-1])


def measured(device: str, dtype: torch.dtype) -> Constants:
    """The constants of a type of device and a dtype; those of float32, and of the CPU, where nothing was measured."""
    names = (str(dtype).removeprefix("torch."), "float32")
    sources = [entry.devices for entry in (_loaded, shipped(this_cpu()), ENTRIES[-1]) if entry]
    tables = ([of[kind] for of in sources if kind in of] for kind in (device, "cpu"))
    return next(table[name] for alike in tables for name in names for table in alike if name in table)


def kernels(architecture: str) -> tuple[str, ...]:
    """The operations whose kernels `backend="auto"` takes on an architecture: of a loaded file, else as shipped.

    >>> kernels("sm_35")
    ()
    """
    sources = (entry.kernels for entry in (_loaded, ENTRIES[-1]) if entry)
    return next((of[architecture] for of in sources if architecture in of), ())


def architecture(device: torch.device) -> str:
    """The architecture of a CUDA device, such as `sm_90`; the type of any other device.

    >>> architecture(torch.device("cpu"))
    'cpu'
    """
    # AMD's devices are of type cuda, too, and their numbers mean something else.
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return device.type
    return _capability(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _capability(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


ENTRIES = tuple(parsed(entry) for entry in json.loads(SHIPPED.read_text()))
_loaded: Measured | None = None
