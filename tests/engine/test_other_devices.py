"""Rules of nodes that only other devices make, on graphs of imitated kernels."""

from __future__ import annotations

import pytest

import gramjd
from gramjd.engine.rules import TABLE
from tests.engine.imitations import MODELS, Model, losses_of, other_devices
from tests.oracle import assert_close_gramian, oracle_gramian
from tests.zoo.nodes import names_of

pytestmark = pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.node}-{model.layout}")
def test_exact_and_of_the_stated_layout(model: Model) -> None:
    expected = oracle_gramian(losses_of(model.same, model.shape))
    with other_devices():
        losses = losses_of(model.layer, model.shape)
        assert model.node in names_of(losses)
        assert model.node in TABLE
        assert_close_gramian(oracle_gramian(losses), expected, 1e-12, f"the imitation of {model.node}")
        assert_close_gramian(gramjd.gramian(losses), expected, 1e-12, model.node)
        reported = {entry.operation for entry in gramjd.explain(losses).dense}
    assert reported == ({model.node} if model.layout == "dense" else set())


def test_the_imitations_are_gone_afterwards() -> None:
    with other_devices():
        pass
    for model in MODELS:
        assert model.node not in names_of(losses_of(model.same, model.shape))
