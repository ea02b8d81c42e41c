"""How the damping changes."""

import pytest

from gramjd.optim.damping import Damping


def test_nielsens_rule():
    damping = Damping(1.0)
    assert damping.lowered(0.5).value == 1.0
    assert damping.lowered(0.0).value == 2.0
    assert damping.lowered(0.75).value == pytest.approx(0.875)
    assert damping.lowered(5.0) == Damping(1 / 3)
    assert damping.raised().raised().raised() == Damping(64.0, 16.0)
    assert damping.at_least(3.0) == Damping(3.0)
