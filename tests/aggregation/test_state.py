"""What weightings keep: saved, loaded, forgotten, and guarded against another number of losses."""

import io

import pytest
import torch

from gramjd.aggregation import (
    CRMOGM,
    MGDA,
    PCD,
    ExcessMTL,
    GradDrop,
    GradVac,
    MoDo,
    Nested,
    PCGrad,
    Random,
    SDMGrad,
    UPGrad,
)
from gramjd.errors import AggregatorError

from .optimality import jacobian

MAKERS = [
    lambda: MoDo(0.05),
    lambda: SDMGrad(rate=0.3),
    lambda: ExcessMTL(warmup=2),
    lambda: PCD(0.3, 0.5),
    lambda: GradVac(0.3, seed=1),
    lambda: PCGrad(seed=1),
    lambda: Random(seed=1),
    lambda: GradDrop(seed=1),
    lambda: CRMOGM(GradVac(0.2, seed=3), 0.5),
    lambda: CRMOGM(CRMOGM(MGDA()), 0.5),
    lambda: Nested(Random(seed=4), MoDo(0.05)),
]


def updates(aggregator, calls):
    losses = torch.ones(2, 3)
    results = []
    for seed in calls:
        J = jacobian("full", 6, seed)
        results.append(aggregator.aggregate(J) if isinstance(aggregator, GradDrop) else aggregator.aggregate(J, losses))
    return torch.stack(results)


def emptied(state):
    for value in state.values():
        emptied(value) if isinstance(value, dict) else value.zero_()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()))
def test_goes_on_where_the_saved_one_was(make):
    first, second = make(), make()
    updates(first, range(4))
    state = first.state_dict()
    second.load_state_dict(through_a_file(state))
    later = updates(first, range(4, 8))
    assert torch.equal(updates(second, range(4, 8)), later)
    # What was handed out and what was taken in are copies: no call has moved them, and emptying them moves nothing.
    third = make()
    third.load_state_dict(state)
    emptied(state)
    emptied(third.state_dict())
    assert torch.equal(updates(third, range(4, 8)), later)
    assert not torch.equal(updates(make(), range(4, 8)), later)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()))
def test_reset_is_a_fresh_start(make):
    weighting = make()
    once = updates(weighting, range(3))
    weighting.reset()
    assert torch.equal(updates(weighting, range(3)), once)
    assert torch.equal(updates(make(), range(3)), once)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()))
def test_a_fresh_state_loads(make):
    first, second = make(), make()
    updates(second, range(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(updates(second, range(3)), updates(first, range(3)))


def test_a_given_generator_starts_again_where_it_was():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    weighting = Random(generator)
    once = updates(weighting, range(3))
    weighting.reset()
    assert torch.equal(updates(weighting, range(3)), once)


def test_the_global_generator_is_no_part_of_the_state():
    for weighting in (Random(), PCGrad(), GradDrop()):
        assert weighting.state_dict() == {}
        weighting.load_state_dict({})
        weighting.reset()
    assert GradVac(0.5).state_dict() == {"targets": None}


@pytest.mark.parametrize(
    "weighting", [MoDo(), SDMGrad(), ExcessMTL(), PCD(), GradVac(), CRMOGM(MGDA())], ids=lambda w: type(w).__name__
)
def test_another_number_of_losses(weighting):
    before = weighting(torch.eye(3, dtype=torch.float64))
    state = weighting.state_dict()
    with pytest.raises(AggregatorError, match=r"for 3 losses, but now there are 4: call reset\(\)"):
        weighting(torch.eye(4))
    for a, b in zip(state.values(), weighting.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    weighting.reset()
    assert weighting(torch.eye(4)).shape == (4,)
    weighting.load_state_dict(state)
    assert weighting(torch.eye(3, dtype=torch.float64)).shape == before.shape


@pytest.mark.parametrize("weighting", [MoDo(), SDMGrad(), ExcessMTL(), PCD(), GradVac(), CRMOGM(UPGrad())], ids=repr)
def test_a_gramian_that_is_refused_leaves_no_trace(weighting):
    weighting(torch.diag(torch.tensor([1.0, 4.0])))
    state = weighting.state_dict()
    with pytest.raises(AggregatorError):
        weighting(torch.full((2, 2), float("nan")))
    for a, b in zip(state.values(), weighting.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("weighting", "state", "message"),
    [
        (MoDo(), {}, "the state of MoDo has the entries 'weights'; got no entries: load what"),
        (MoDo(), {"weight": None}, "got the entries 'weight'"),
        (MoDo(), {"weights": [1.0]}, r"'weights' in the state must be a tensor; got \[1.0\]"),
        (Random(seed=0), {"generator": None}, "'generator' in the state must be a tensor; got None"),
        (Random(), {"generator": torch.ones(3)}, "the state of Random has no entries; got the entries 'generator'"),
        (CRMOGM(MoDo()), {"weights": None, "weighting": {}}, "the state of MoDo has"),
    ],
)
def test_refuses_another_state(weighting, state, message):
    with pytest.raises(AggregatorError, match=message):
        weighting.load_state_dict(state)
