"""The rule table names nodes that torch has, reads what they save, and every entry is compared with the oracle."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import gramjd
from gramjd.engine import autograd, graph, plan, rules
from gramjd.engine.node import NodeView
from gramjd.engine.rules import CUSTOM, TABLE, parallel, pointwise, regions
from tests.engine.imitations import MODELS, losses_of, other_devices
from tests.zoo import CASES
from tests.zoo.nodes import names_of
from tests.zoo.registry import single_thread

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")

# Operations that older versions have no node for: the first version with one.
SINCE = {"FusedRmsNorm": (2, 9), "Ldexp": (2, 11), "Aminmax": (2, 12)}
# Operations whose node went away: the last version with one.
UNTIL: dict[str, tuple[int, int]] = {}
# Nodes that no graph on a CPU can be differentiated through.
UNREACHABLE = {
    "AcoshBackward1": "torch has no derivative of acosh_",
    "AsinhBackward1": "torch has no derivative of asinh_",
    "AtanhBackward1": "torch has no derivative of atanh_",
}
VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
READERS = ("saved", "integer", "integers", "dim")


def node_class(name: str) -> Any:
    """torch's class of a node; None if there is none of that name."""
    return getattr(torch._C._functions, name.rpartition("::")[2], None)


def entries() -> list[str]:
    """The library's own entries: other tests register more."""
    return [name for name in TABLE if name not in CUSTOM and name not in {**parallel.RULES, **regions.RULES}]


def live() -> set[str]:
    """Entries that this torch has a node for."""
    return {name for name in entries() if node_class(name) is not None}


def operations() -> dict[str, list[str]]:
    """Entries by operation: the overloads are numbered without regard to how many there are."""
    found: dict[str, list[str]] = {}
    for name in entries():
        found.setdefault(re.sub(r"Backward\d+$", "", name), []).append(name)
    return found


def test_every_operation_is_known_to_torch() -> None:
    known = live()
    absent = {operation for operation, names in operations().items() if known.isdisjoint(names)}
    assert absent == {name for name, first in SINCE.items() if first > VERSION} | {
        name for name, last in UNTIL.items() if last < VERSION
    }


def test_lists_name_entries_of_the_table() -> None:
    assert set(SINCE) | set(UNTIL) <= set(operations())
    assert set(UNREACHABLE) <= live()
    assert {model.node for model in MODELS} <= set(entries())


def test_nodes_that_are_named_elsewhere_exist() -> None:
    """Those treated in a special way, beside the table."""
    overwriting = {f"{name}Backward0" for name in pointwise._FORMULAS}
    for names in (graph.PRODUCTS, autograd.WRONG_UNDER_VMAP, overwriting):
        assert names
        assert {name for name in names if node_class(name) is None} == set()
    assert set(rules.ISOMETRIES) <= set(entries())


class Survey(NamedTuple):
    """Names of nodes that the zoo makes, that only imitations make, and pairs of a name and what a rule reads there."""

    on_cpu: set[str]
    imitated: set[str]
    read: set[tuple[str, str]]


@pytest.fixture(scope="module")
def survey() -> Survey:
    found = Survey(set(), set(), set())
    original = NodeView.saved
    plan.forget()

    def noted(node: NodeView, name: str) -> Any:
        found.read.add((node.name, name))
        return original(node, name)

    with pytest.MonkeyPatch.context() as patch, single_thread():
        patch.setattr(NodeView, "saved", noted)
        for case in CASES.values():
            if not case.slow and not case.may_refuse:
                losses, inputs = case.make(case.dtypes[-1])
                found.on_cpu.update(names_of(losses))
                gramjd.gramian(losses, inputs=inputs)
        with other_devices():
            for model in MODELS:
                losses = losses_of(model.layer, model.shape)
                found.imitated.update(names_of(losses) - found.on_cpu)
                gramjd.gramian(losses)
    return found


def test_every_entry_is_compared_with_the_oracle(survey: Survey) -> None:
    """By a case of the zoo on the CPU, by an imitation of another device's kernel, or there is a reason why not."""
    assert live() - survey.on_cpu - survey.imitated == set(UNREACHABLE)
    assert survey.imitated == {model.node for model in MODELS}, "the zoo is the place for what a CPU makes"


@pytest.mark.parametrize("name", UNREACHABLE)
def test_the_unreachable_have_no_derivative(name: str) -> None:
    operation = getattr(torch, name.removesuffix("Backward1").lower() + "_")
    y = operation(torch.rand(3, requires_grad=True) * 0.5 + 0.1)
    assert y.grad_fn.name() == name
    with pytest.raises(RuntimeError, match="not implemented"):
        y.sum().backward()


def test_what_rules_read_is_saved(survey: Survey) -> None:
    """A renamed attribute is named here, whatever the walk makes of it."""
    ours = {(name, attribute) for name, attribute in survey.read if node_class(name) is not None}
    assert len(ours) > 200
    assert {pair for pair in ours if not hasattr(node_class(pair[0]), f"_saved_{pair[1]}")} == set()


def names_in_rules() -> set[str]:
    """The texts that rules pass to the readers of a `NodeView`."""
    found = set()
    for file in Path(rules.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READERS:
                found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
                if node.func.attr == "dim" and not node.args:
                    found.add("dim")
    return found


def test_every_attribute_is_read_by_some_case(survey: Survey) -> None:
    assert names_in_rules() - {attribute for _, attribute in survey.read} == set()
