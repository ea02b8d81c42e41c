"""Fixed seeds for every test, the same examples of hypothesis in every run, one thread a worker."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("gramjd", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("gramjd")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
