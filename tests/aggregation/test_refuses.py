"""What every weighting made from the Gramian refuses: what is no Gramian, and bad options."""

import math

import pytest
import torch

from gramjd.aggregation import AlignedMTL, CAGrad, DualProj, FairGrad, Krum, PCGrad, Random
from gramjd.aggregation._weighting import weigh
from gramjd.errors import AggregatorError

from .test_table import ALL, KEEPING, WITH_LOSSES


@pytest.mark.parametrize("weighting", [*ALL, *KEEPING, *WITH_LOSSES], ids=repr)
@pytest.mark.parametrize(
    ("G", "message"),
    [
        ([[1.0]], "must be a torch.Tensor"),
        (torch.ones(3, 4), r"got shape \[3, 4\]"),
        (torch.ones(4, 4, dtype=torch.int64), "floating point; got torch.int64"),
        (torch.full((4, 4), math.nan), "must be finite; 16 of 16"),
        (torch.eye(4) + torch.tensor([0.0, 0.5, 0, 0]), "must be symmetric"),
        (torch.eye(4) - 1.5 * torch.ones(4, 4), "positive semi-definite"),
    ],
)
def test_refuses_what_is_no_gramian(weighting, G, message):
    with pytest.raises(AggregatorError, match=message):
        weigh(weighting, G, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CAGrad(-0.1), "c must be a finite number, 0 or more; got -0.1"),
        (lambda: CAGrad(math.inf), "c must be"),
        (lambda: CAGrad("big"), "c must be .* got 'big'"),
        (lambda: FairGrad(0), r"alpha must be a number from 0\.1 to 20; got 0"),
        (lambda: FairGrad(math.nan), "alpha must be"),
        (lambda: AlignedMTL("mean"), "one of 'min', 'median', 'rmse'; got 'mean'"),
        (lambda: Krum(-1), "byzantine must be an int, 0 or more; got -1"),
        (lambda: Krum(1, 0), "selected must be an int, 1 or more; got 0"),
        (lambda: Krum(1.5), "byzantine must be an int"),
        (lambda: Krum(1)(torch.eye(3)), r"Krum\(byzantine=1, selected=1\) needs at least 4 gradients; .* 3 x 3"),
        (lambda: Krum(0, 5)(torch.eye(4)), "needs at least 5 gradients"),
        (lambda: PCGrad("a"), "seed must be an int, a torch.Generator on the CPU, or None .* got 'a'"),
        (lambda: Random(True), "seed must be"),
        (lambda: Random(0)(torch.ones(2, 3)), "must be square"),
        (lambda: DualProj([1.0, 0.0]), "preference must be positive"),
        (lambda: DualProj([1.0, 2.0])(torch.eye(3)), "preference has 2 entries, but the Gramian is 3 x 3"),
    ],
)
def test_refuses_bad_options(make, message):
    with pytest.raises(AggregatorError, match=message):
        make()
