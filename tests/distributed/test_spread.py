"""Models sharded by FSDP and tensor-parallel ones, against one process; faults end on all ranks alike."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks

# Scenes that a run of so many ranks makes one after the other: starting a process takes longer than a scene.
TOGETHER = {
    "sharded": (2, "each", "root_only", "kept", "tied", "inputs", "inputs_listed", "frozen", "means"),
    "with the rest": (2, "in_precision", "checkpointed", "hooked", "local", "only_some", "trains"),
    "modules": (2, "of_all_modules"),
    "three ranks": (3, "each", "another_group"),
    "faults": (2, "in_the_walk", "not_finite", "no_losses", "refused"),
    "tensor-parallel": (2, "tensor", "tensor_sequence", "of_all_kinds", "in_float32", "random_weights"),
    "two dimensions": (
        4,
        "hybrid",
        "kept_in_pairs",
        "tensor_data",
        "tensor_sharded",
        "tensor_sequence_sharded",
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_ranks(name: str) -> None:
    ranks, *scenes = TOGETHER[name]
    run_ranks(ranks, ["-m", "tests.distributed.spread", *scenes], timeout=600)
