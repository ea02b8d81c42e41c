"""What stands below a table: where and with what it was measured, and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def listed(lines: Sequence[str]) -> str:
    """Lines as a list below a table."""
    return "".join(f"\n{line}" for line in ["", *(f"- {line}" for line in lines)]) if lines else ""


def placed(results: Mapping[str, Any]) -> str:
    """Where and with what it was measured."""
    facts = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    device = facts.get("gpu", f"{facts['cpu']}, {facts['cores']} cores")
    products = results.get("products")  # older results do not name them
    told = f" products: gramjd {products['gramjd']}, others {products['others']};" if products else ""
    return f"{facts['date']}; {device}, {facts['system']}; {versions};{told} allocator: {facts['allocator']}."


def loaded(results: Mapping[str, Any]) -> str:
    """The clock, and under which load of the machine the cases were measured."""
    loads = [case["load"] for case in results["cases"].values() if case.get("load") is not None]
    told = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not known"
    return f"{results['clock']}; load of the machine: {told}."
