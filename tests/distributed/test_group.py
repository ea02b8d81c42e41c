"""One Gramian over all ranks of a group, against one process that has all losses; faults end on all ranks alike."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks

# Scenes that a run of so many ranks makes one after the other: starting a process takes longer than a scene.
TOGETHER = {
    "models": (3, "mlp_backward", "mlp_reuse", "cnn_backward", "cnn_reuse", "tasks_backward", "tasks_reuse", "gramian"),
    "tied and uneven": (2, "tied_backward", "tied_reuse", "empty_rank", "empty_first"),
    "four ranks": (4, "mlp_reuse", "tied_backward", "empty_rank"),
    "means": (3, "means", "means_reuse", "means_wrapped", "means_by_name"),
    "tasks": (3, "of_tasks", "of_tasks_reuse", "of_tasks_wrapped"),
    "wrapped": (2, "wrapped", "wrapped_reuse", "wrapped_static", "wrapped_views", "wrapped_unused", "without_sync"),
    "precision": (2, "in_autocast", "in_autocast_wrapped"),
    "faults": (2, "not_finite", "another_structure", "another_graph", "in_the_walk"),
    "later faults": (2, "in_the_weights", "no_losses", "bad_option", "not_reached"),
    "some of them": (3, "subgroup", "in_another_order"),
    "accumulated": (
        3,
        "accumulated_mlp",
        "accumulated_cnn",
        "accumulated_tied",
        "accumulated_tasks",
        "accumulated_wide",
    ),
    "accumulated by some": (2, "accumulated_on_cpu", "accumulated_by_one", "accumulated_faults"),
    "bytes": (2, "counted", "counted_means", "within_budget"),
    "bytes of three": (3, "counted", "counted_means"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_ranks(name: str) -> None:
    ranks, *scenes = TOGETHER[name]
    run_ranks(ranks, ["-m", "tests.distributed.scenes", *scenes], timeout=600)


@pytest.mark.slow
def test_eight_ranks() -> None:
    run_ranks(8, ["-m", "tests.distributed.scenes", "counted", "mlp_reuse"], timeout=600)
