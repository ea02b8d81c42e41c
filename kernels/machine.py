"""The kind of CPU, as the operating system states it: the key under which measured constants are kept.

Read once per process, from `/proc/cpuinfo` or from what `platform` offers, and from no environment variable.
"""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Short names of vendors, for messages.
VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}


class Cpu(NamedTuple):
    """A kind of CPU. Family and model are 0 where the system does not state them.

    >>> print(Cpu("AuthenticAMD", 26, 2))
    AMD family 26 model 2
    >>> print(Cpu("arm"))
    arm
    """

    vendor: str
    family: int = 0
    model: int = 0

    def __str__(self) -> str:
        """Vendor, family and model in short."""
        vendor = VENDORS.get(self.vendor, self.vendor)
        return f"{vendor} family {self.family} model {self.model}" if self.family else vendor


@cache
def this_cpu() -> Cpu:
    """The CPU of this machine; of several kinds, the one that is listed first."""
    try:
        found = of_cpuinfo(Path("/proc/cpuinfo").read_text())
    except (OSError, ValueError):
        found = None
    return found or of_platform(platform.processor(), platform.machine())


def of_cpuinfo(text: str) -> Cpu | None:
    """The first processor of a `/proc/cpuinfo`, or None where it states no vendor.

    On ARM the vendor is the implementer, the family is the architecture, and the model is the part.

    >>> of_cpuinfo("vendor_id : GenuineIntel\\ncpu family : 6\\nmodel : 143\\n")
    Cpu(vendor='GenuineIntel', family=6, model=143)
    >>> of_cpuinfo("CPU implementer : 0x41\\nCPU architecture: 8\\nCPU part : 0xd40\\n")
    Cpu(vendor='ARM implementer 0x41', family=8, model=3392)
    """
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    if "vendor_id" in facts:
        return Cpu(facts["vendor_id"], _number(facts.get("cpu family")), _number(facts.get("model")))
    if "CPU implementer" in facts:
        vendor = f"ARM implementer {facts['CPU implementer']}"
        return Cpu(vendor, _number(facts.get("CPU architecture")), _number(facts.get("CPU part")))
    return None


def of_platform(processor: str, machine: str) -> Cpu:
    """The CPU that `platform.processor()` and `platform.machine()` describe.

    >>> of_platform("AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", "AMD64")
    Cpu(vendor='AuthenticAMD', family=25, model=17)
    >>> of_platform("arm", "arm64")
    Cpu(vendor='arm', family=0, model=0)
    """
    found = re.search(r"Family (\d+) Model (\d+).*, (\w+)", processor)
    if found:
        return Cpu(found[3], int(found[1]), int(found[2]))
    return Cpu(processor or machine or "unknown")


def _number(text: str | None) -> int:
    """The number in `text`, or 0 where there is none."""
    try:
        return int(text or "0", 0)
    except ValueError:
        return 0
