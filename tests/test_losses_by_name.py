"""Losses by name: what a step returns, and aggregators that keep something for each, where some are missing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import gramjd
from gramjd import CRMOGM, MGDA, ByName, Constant, ExcessMTL, GradVac, GramStep, MoDo, SDMGrad, UPGrad
from gramjd.errors import AggregatorError, LossError
from tests.small import mlp

F64 = torch.float64


def gramian(m: int, seed: int) -> Tensor:
    J = torch.randn(m, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return J @ J.T


def part(G: Tensor, *place: int) -> Tensor:
    return G[list(place)][:, list(place)]


def test_a_step_has_the_names_and_is_still_a_pair() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    step = gramjd.gram_backward({"a": w[0] ** 2, "gone": None, "b": (w[0] - 2) ** 2 + w[1] ** 2})
    weights, G = step
    assert step.names == ("a", "b")
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.6]))
    assert G is step.gramian
    for other in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert other.names == step.names
        assert torch.equal(other.weights, step.weights)
    assert gramjd.gram_backward(w**2).names is None


def test_every_function_takes_names() -> None:
    model = mlp()
    out = model(torch.randn(4, 5, dtype=F64)).square()
    named = {"first": out[:, 0].sum(), "each": out[:, 1]}
    listed = list(named.values())
    torch.testing.assert_close(gramjd.gramian(named), gramjd.gramian(listed))
    torch.testing.assert_close(gramjd.gradient_norms(named), gramjd.gradient_norms(listed))
    assert gramjd.explain(named).losses == 5
    step = gramjd.gram_backward(named)
    assert step.names == ("first", "each[0]", "each[1]", "each[2]", "each[3]")
    trunk, heads = nn.Linear(3, 2), nn.ModuleList(nn.Linear(2, 1) for _ in range(2))
    tasks = {name: head(trunk(torch.ones(3))).square().sum() for name, head in zip("xy", heads, strict=True)}
    assert gramjd.mtl_backward(tasks).names == ("x", "y")
    accumulator = gramjd.Accumulator()
    accumulator.add({"a": trunk(torch.ones(3)).sum()})
    accumulator.add({"b": trunk(torch.zeros(3)).sum()})
    assert accumulator.step().names == ("a", "b")


def test_names_are_strings() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(LossError, match="a loss is called 1; names must be strings"):
        gramjd.gram_backward({1: w.sum()})


NAMES = ["a", "b", "c"]
MAKERS = {
    "upgrad": lambda: UPGrad(preference=[3.0, 1.0, 0.5]),
    "constant": lambda: Constant([3.0, 1.0, 0.5]),
    "modo": lambda: MoDo(0.02),
    "sdmgrad": lambda: SDMGrad(preference=[3.0, 1.0, 0.5], rate=0.3),
    "excess": lambda: ExcessMTL(warmup=2),
    "gradvac": lambda: GradVac(0.3, seed=1),
    "crmogm": lambda: CRMOGM(UPGrad(preference=[3.0, 1.0, 0.5]), 0.5),
    "crmogm, initial": lambda: CRMOGM(MGDA(), 0.5, initial=[0.2, 0.3, 0.5]),
    "function": lambda: MGDA(),
}


@pytest.mark.parametrize("name", MAKERS)
def test_with_all_present_nothing_changes(name: str) -> None:
    """In any order: rows go where their names say."""
    own, named = MAKERS[name](), ByName(MAKERS[name](), NAMES)
    for seed in range(3):
        G = gramian(3, seed)
        w = own(G)
        turned = named(part(G, 2, 0, 1), names=["c", "a", "b"])
        torch.testing.assert_close(turned, w[[2, 0, 1]])


@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_that_is_missing_keeps_what_it_had(name: str) -> None:
    """Two present losses go on as if they were the only ones; the third one's state waits, also through a failure."""
    named = ByName(MAKERS[name](), NAMES)
    named(gramian(3, 0), names=NAMES)
    before = copy.deepcopy(named.state_dict())
    if name != "constant":  # which looks at no values
        with pytest.raises(AggregatorError):
            named(torch.full((2, 2), torch.nan, dtype=F64), names=["a", "c"])
    torch.testing.assert_close(named.state_dict(), before)
    w = named(gramian(2, 1), names=["c", "a"])
    assert w.shape == (2,)
    for key, value in named.state_dict()["weighting"].items() if "weighting" in named.state_dict() else ():
        old = before["weighting"][key]
        if isinstance(value, Tensor) and value.ndim and len(value) == 3:
            torch.testing.assert_close(value[1], old[1], rtol=1e-12, atol=1e-12) if value.ndim == 1 else None
            if value.ndim == 2:  # pairs: of b with anything
                torch.testing.assert_close(value[1], old[1])
                torch.testing.assert_close(value[:, 1], old[:, 1])
    named(gramian(3, 2), names=NAMES)  # and all together again


def test_preferences_go_with_their_losses() -> None:
    G = gramian(3, 4)
    named = ByName(UPGrad(preference=[3.0, 1.0, 0.5]), NAMES)
    torch.testing.assert_close(named(part(G, 2, 0), names=["c", "a"]), UPGrad(preference=[0.5, 3.0])(part(G, 2, 0)))
    torch.testing.assert_close(named(G, names=NAMES), UPGrad(preference=[3.0, 1.0, 0.5])(G))  # and are whole again


def test_a_simplex_is_shared_out_in_proportion() -> None:
    named, own = ByName(MoDo(0.02), NAMES), MoDo(0.02)
    w = named(gramian(3, 0), names=NAMES)
    own.load_state_dict({"weights": w[[0, 2]] / w[[0, 2]].sum()})
    G = gramian(2, 1)
    expected = own(G)
    torch.testing.assert_close(named(G, names=["a", "c"]), expected)
    kept = named.state_dict()["weighting"]["weights"]
    torch.testing.assert_close(kept[[0, 2]], expected * (1 - w[1]))
    torch.testing.assert_close(kept.sum(), torch.ones((), dtype=F64))


def test_excess_counts_only_what_it_saw() -> None:
    """The state of two present losses is that of a weighting which never knew the third."""
    named, own = ByName(ExcessMTL(), NAMES), ExcessMTL()
    for seed in range(4):
        G = gramian(2, seed)
        torch.testing.assert_close(named(G, names=["a", "c"]), own(G))
    kept = named.state_dict()["weighting"]
    assert kept["calls"].tolist() == [4, 0, 4]
    assert kept["squares"][1] == 0


def test_the_first_call_may_lack_a_loss() -> None:
    named = ByName(CRMOGM(Constant([1.0, 2.0, 3.0]), 0.5), NAMES)
    assert named(gramian(2, 0), names=["a", "b"]).tolist() == [1, 2]
    assert named(gramian(3, 0), names=NAMES).tolist() == [1, 2, 3]  # c starts with what it gets


def test_groups_in_a_training_step() -> None:
    """A batch without a group: the gradient is that of the present ones with their own preference."""
    model = mlp()
    x, group = torch.randn(6, 5, dtype=F64), torch.tensor([0, 0, 2, 2, 2, 0])

    def by_group() -> dict[str, Tensor | None]:
        losses = model(x).square().sum(1)
        return {n: losses[group == k].mean() if bool((group == k).any()) else None for k, n in enumerate(NAMES)}

    step = gramjd.gram_backward(by_group(), ByName(UPGrad(preference=[3.0, 1.0, 0.5]), NAMES))
    found = [p.grad.clone() for p in model.parameters()]
    assert step.names == ("a", "c")
    for p in model.parameters():
        p.grad = None
    gramjd.gram_backward([loss for loss in by_group().values() if loss is not None], UPGrad(preference=[3.0, 0.5]))
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])


def test_losses_are_handed_on_in_order() -> None:
    class Seen:
        takes_losses = True

        def __call__(self, G: Tensor, losses: Tensor) -> Tensor:
            self.losses = losses
            return torch.ones(len(G))

    seen = Seen()
    ByName(seen, NAMES)(gramian(2, 0), torch.tensor([30.0, 10.0]), names=["c", "a"])
    assert seen.losses.tolist() == [10, 30]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ByName(UPGrad(), []), "names must be strings"),
        (lambda: ByName(UPGrad(), "abc"), "names must be strings"),
        (lambda: ByName(UPGrad(), ["a", "a"]), "names must differ"),
        (lambda: ByName(3, ["a"]), "must be a function"),
        (lambda: ByName(MoDo(batches=2), ["a"]), "several batches"),
        (lambda: ByName(UPGrad(), NAMES)(gramian(2, 0)), "losses without names"),
        (lambda: ByName(UPGrad(), NAMES)(gramian(2, 0), names=["a", "z"]), r"called \['a', 'z'\]"),
        (lambda: ByName(UPGrad(), NAMES)(gramian(2, 0), names=["a", "a"]), "one loss for each name"),
        (lambda: ByName(UPGrad([1.0, 2.0]), NAMES)(gramian(2, 0), names=["a", "b"]), "2 entries for 3 names"),
        (lambda: ByName(gramjd.PCD(0.3, 0.5), NAMES)(gramian(2, 0), names=["a", "b"]), "belongs to no single loss"),
    ],
)
def test_refuses(call, words: str) -> None:
    with pytest.raises(AggregatorError, match=words):
        call()


def test_state_is_saved_and_forgotten() -> None:
    named = ByName(MoDo(0.02), NAMES)
    named(gramian(2, 0), names=["a", "c"])
    state = named.state_dict()
    other = ByName(MoDo(0.02), NAMES)
    other.load_state_dict(state)
    torch.testing.assert_close(other(gramian(3, 1)), named(gramian(3, 1)))
    named.reset()
    torch.testing.assert_close(named(gramian(3, 1)), MoDo(0.02)(gramian(3, 1)))
    assert named.scale_free is False
    assert isinstance(GramStep(torch.ones(1), torch.ones(1, 1)), tuple)
