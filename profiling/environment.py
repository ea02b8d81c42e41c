"""Where a measurement was made: machine, versions, date, allocator. No host names, no paths."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gramjd.kernels import current_products
from gramjd.kernels.dispatch import chosen
from gramjd.kernels.machine import this_cpu

# glibc gives large blocks back to the system when they are freed and takes page faults to get them again.
# Kept, they are reused. PyTorch's own steps gain from it too, so ratios are reported under both settings.
KEEP_FREED = {
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}


def describe(packages: Sequence[str] = ("torch", "gramjd", "torchjd"), device: str = "cpu") -> dict[str, object]:
    """The facts that a reader needs to place a number.

    Args:
        packages: whose versions to record; those not installed are left out.
        device: `cpu` or a GPU, whose name is recorded then.
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    facts: dict[str, object] = {
        "date": datetime.now(UTC).date().isoformat(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_kind": str(this_cpu()),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "allocator": "freed blocks kept" if keeps_freed() else "default",
        "versions": versions,
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def products_used(backend: str | None = None) -> dict[str, str]:
    """What computes large float32 products on the CPU, on both sides of a comparison: the field `products` of a result.

    Args:
        backend: that gramjd runs with; default: the one in force.

    >>> products_used("onednn")["gramjd"]
    'oneDNN (backend "onednn")'
    """
    with chosen(backend):
        own = current_products()
    return {"gramjd": str(own), "others": own._replace(library="torch").name}


def keeps_freed(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns True if this process was started with the settings of `KEEP_FREED`."""
    return all(environ.get(name) == value for name, value in KEEP_FREED.items())


def restart_keeping_freed() -> None:
    """Start this program over in this process's place with `KEEP_FREED` set; return if it is set already.

    glibc reads these settings when a process starts, so they cannot be changed from inside.
    """
    if not keeps_freed():
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_FREED})


def _cores() -> int:
    # sched_getaffinity knows of a container's share of the cores, but exists on Linux only.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
