"""Fixed seeds for every test, the same examples of hypothesis in every run, one thread per worker.

`--products torch` or `--products onednn` has large float32 products computed by that library in the whole run, whatever
`devices.json` says of this machine; tests of the choice itself state theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

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


@pytest.fixture(autouse=True, scope="session")
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.config.getoption("--products")):
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
