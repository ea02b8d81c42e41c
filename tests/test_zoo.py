"""The promise, over the zoo: a Gramian is exact, or it is an error that names the operation."""

import pytest
import torch

from tests.oracle import leaves, oracle_gramian
from tests.zoo import CASES, Case

EACH = [pytest.param(c, marks=[pytest.mark.slow] * c.slow, id=name) for name, c in CASES.items()]


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_case_itself(case: Case, dtype: torch.dtype) -> None:
    if dtype not in case.dtypes:
        pytest.skip("not in this dtype")
    losses, inputs = case.make(dtype)
    gramian = oracle_gramian(losses, inputs)
    assert gramian.isfinite().all()
    assert gramian.diagonal().max() > 0
    assert leaves(losses)
