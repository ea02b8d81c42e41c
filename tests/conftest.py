"""Fixed seeds for every test, the same examples of hypothesis in every run, one thread per worker.

`--products torch` or `--products onednn` has large float32 products computed by that library in the whole run, whatever
`devices.json` says of this machine; tests of the choice itself state theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from gramjd.engine.choice import only
from gramjd.kernels import use_backend

settings.register_profile("gramjd", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("gramjd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--products",
        choices=("auto", "torch", "onednn"),
        default="auto",
        help="what computes large float32 products on the CPU (default: what devices.json says of it)",
    )


# Tests, by a part of their name, that fail with an older torch through no fault of gramjd's results: seen with 2.7 and
# no more with 2.13.
OLD = {
    "[checkpoint-nested": "torch recomputes it with another default dtype; plain backward() fails, too",
    "test_a_checkpoint_is_recomputed_once": "torch recomputes it twice for one walk; the result is the same",
    "test_every_entry_is_compared_with_the_oracle": "torch has nodes that no function of it leads to (Alias)",
    "test_batch_axis_survives[pde-energy-force": "torch slices whole axes, and the second derivative of that is dense",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13):
        return
    for item in items:
        for part, reason in OLD.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.xfail(strict=False, reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.config.getoption("--products")):
        yield


@pytest.fixture(autouse=True, scope="session")
def _walks_in_shared_fixtures() -> Iterator[None]:
    """What fixtures of a module or a session compute, too: see `_walks`."""
    with only("walk"):
        yield


@pytest.fixture(autouse=True)
def _walks() -> Iterator[None]:
    """The models of the tests are so small that plain passes would be chosen for nearly all of them.

    Tests of passes, and of the choice, say `only("passes")` and `only(None)`.
    """
    with only("walk"):
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
