"""The table of compiled steps, from what `compiled` measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gramjd.text_table import markdown, short

# What stands in the table beside the plain steps: heading to contender.
SHOWN = {
    "Mean, eager": "Mean reuse eager",
    "graph": "Mean reuse graph",
    "compiled": "Mean reuse compiled",
    "compiled, backward": "Mean backward compiled",
    "UPGrad, eager": "UPGrad reuse eager",
    "graph ": "UPGrad reuse graph",
    "compiled ": "UPGrad reuse compiled",
}


def compiled_steps(results: Mapping[str, Any]) -> str:
    """Ratios to the plain eager step; then over plain compiled: time, memory; seconds to compile and when they pay."""
    return "\n\n".join(_one(results[name]) for name in sorted(results))


def _one(found: Mapping[str, Any]) -> str:
    headings = [heading.strip() for heading in SHOWN]
    first = [["case", "plain, ms", "plain compiled", *headings]]
    second = [["case", "time", "memory", "memory, backward", "seconds to compile", "pays after steps"]]
    for name, case in found["cases"].items():
        plain = short(case["plain"]["milliseconds"]["median"])
        first.append([name, plain, _ratio(case, "plain compiled"), *(_ratio(case, one) for one in SHOWN.values())])
        second.append([name, *_over_compiled(case)])
    facts = found["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    clock = "CPU time of one thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    products = f"products: gramjd {facts['products']['gramjd']}, others {facts['products']['others']}"
    load = f"load of the machine: {facts['load']:.1f}"
    placed = f"{facts['date']}; {facts['cpu']}, {facts['system']}; {versions}; {products}; {load}."
    between = (
        "The step with Mean and reuse, compiled, over the plain step compiled; and the memory of one with a second "
        "backward pass:"
    )
    return "\n\n".join([f"**{clock}**", markdown(first), between, markdown(second), placed])


def _ratio(case: Mapping[str, Any], contender: str) -> str:
    result = case.get(contender)
    if result is None:
        return ""
    return "refused" if "refused" in result else f"{result['ratio']['median']:.2f}"


def _over_compiled(case: Mapping[str, Any]) -> list[str]:
    names = ("Mean reuse compiled", "Mean backward compiled", "plain compiled", SHOWN["Mean, eager"])
    mine, backward, plain, eager = (case.get(name, {"refused": ""}) for name in names)
    if any("refused" in one for one in (mine, backward, plain, eager)):
        return [""] * 5
    time = mine["milliseconds"]["median"] / plain["milliseconds"]["median"]
    memory, second = (one["peak_bytes"] / max(1, plain["peak_bytes"]) for one in (mine, backward))
    saved = eager["milliseconds"]["median"] - mine["milliseconds"]["median"]
    seconds = mine["seconds_to_compile"]
    pays = f"{1e3 * seconds / saved:,.0f}" if saved > 0 else "never"
    return [f"{time:.2f}", f"{memory:.2f}", f"{second:.2f}", short(seconds), pays]
