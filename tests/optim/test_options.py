"""What the optimizers refuse."""

import pytest
import torch

from gramjd.errors import AggregatorError, InputError
from gramjd.optim import SPRING, LevenbergMarquardt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"damping": 0.0}, "damping must be a number above 0; got 0.0"),
        ({"damping": "a"}, "damping must be a number above 0; got 'a'"),
        ({"trials": 0}, "trials must be an int, 1 or more; got 0"),
        ({"scaling": "rows"}, "scaling is 'rows'; expected one of 'none', 'tensor', 'coordinate'"),
        ({"solver": "qr"}, "solver is 'qr'; expected one of 'auto', 'gramian', 'jacobian'"),
        ({"scaling": "coordinate", "solver": "gramian"}, 'scaling="coordinate" needs the columns of J'),
    ],
)
def test_options(options, said):
    with pytest.raises(InputError) as raised:
        LevenbergMarquardt([torch.ones(2, requires_grad=True)], **options)
    assert said in str(raised.value)


def test_parameters_that_are_refused():
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="got 2 groups of parameters; expected one"):
        LevenbergMarquardt([{"params": [p]}, {"params": [torch.ones(2, requires_grad=True)]}])
    with pytest.raises(InputError, match=r"parameter 0 is torch\.complex64"):
        LevenbergMarquardt([torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(InputError, match="no parameter requires grad"):
        LevenbergMarquardt([torch.ones(2)]).step(lambda: p)


@pytest.mark.parametrize("solver", ["gramian", "jacobian"])
@pytest.mark.parametrize("make", [LevenbergMarquardt, SPRING])
def test_gradients_that_are_not_finite(make, solver):
    """The root of zero has a value and no slope."""
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = make([p], **({"solver": solver} if make is LevenbergMarquardt else {}))
    with pytest.raises(AggregatorError, match="finite"):
        optimizer.step(lambda: (p + torch.tensor([0.0, 1.0, 2.0])).sqrt())
    assert p.tolist() == [0, 0, 0]
