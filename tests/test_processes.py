"""Several processes: what a step does under PyTorch's own parallel training without a `group`."""

from __future__ import annotations

import pytest

from tests.ranks import run_ranks


@pytest.mark.parametrize(
    "scene",
    [
        "data_parallel",
        "data_parallel_reuse",
        "data_parallel_static_graph",
        "data_parallel_static_graph_reuse",
        "data_parallel_unused",
        "data_parallel_inputs",
        "data_parallel_accumulated",
    ],
)
def test_scene(scene: str) -> None:
    run_ranks(2, ["-m", "tests.processes", scene], timeout=120)
