"""Scenes for `test_group.py`: each is run by every rank of a group, and fails by raising."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gramjd
from gramjd._explain import Sent
from gramjd.distributed import exchange, side
from gramjd.errors import InputError, RankError
from tests.oracle import oracle_gramian
from tests.ranks import end


class Tied(nn.Module):
    """A small language model: an embedding that is the head as well, attention, norms, and a bias that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.table.weight
        self.idle = nn.Parameter(torch.zeros(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.table(tokens)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 3))


# Models with data of a rank: m samples each.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, int, torch.Generator], Tensor]]] = {
    "mlp": (mlp, lambda net, m, g: net(torch.randn(m, 5, generator=g).double()).square().sum(1)),
    "cnn": (cnn, lambda net, m, g: net(torch.randn(m, 2, 6, 6, generator=g).double()).square().sum(1)),
    "tied": (
        Tied,
        lambda net, m, g: cross_entropy(
            net(tokens := torch.randint(11, (m, 6), generator=g)).transpose(1, 2), tokens, reduction="none"
        ).mean(1),
    ),
    "wide": (
        lambda: nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 50), nn.LayerNorm(50)),
        lambda net, m, g: net(torch.randn(m, 3, 4, generator=g).double()).square().sum((1, 2)),
    ),
    "tasks": (
        mlp,
        lambda net, m, g: torch.stack(
            [net(torch.randn(9, 5, generator=g).double())[:, k % 3].square().mean() for k in range(m)]
        ),
    ),
}


def losses_of(name: str, net: nn.Module, m: int, rank: int) -> Tensor:
    if not m:
        return torch.empty(0, dtype=torch.float64)
    return MODELS[name][1](net, m, torch.Generator().manual_seed(100 + rank))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def expected(name: str, counts: Sequence[int]) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Gramian, weights and gradients of one process that has the losses of all."""
    net = network(name)
    losses = torch.cat([losses_of(name, net, m, rank) for rank, m in enumerate(counts)])
    G = oracle_gramian(losses, [p for p in net.parameters() if p.shape != (3,) or name != "tied"])
    w = gramjd.UPGrad()(G)
    losses.backward(w)
    return G, w, {key: p.grad for key, p in net.named_parameters()}


def agrees(name: str, counts: Sequence[int], update: str, wrapped: bool = False, **options: bool) -> None:
    """Two steps on every rank are those of one process with all losses, to 1e-10; the second adds to `.grad`."""
    G, w, gradients = expected(name, counts)
    net = network(name)
    model = DistributedDataParallel(net, **options) if wrapped else net
    rank = dist.get_rank()
    # Attention has another graph for one sample, and so have other tasks: the order of parameters has to be given.
    inputs = model if wrapped or 0 in counts or name in ("tied", "tasks") else None
    for times in (1, 2):
        losses = losses_of(name, model, counts[rank], rank)
        step = gramjd.gram_backward(losses, inputs=inputs, update=update, group=dist.group.WORLD)
        torch.testing.assert_close(step.gramian, G, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(step.weights, w, rtol=1e-8, atol=1e-10)
        for key, p in net.named_parameters():
            if gradients[key] is None:
                assert p.grad is None or not p.grad.any(), key
            else:
                torch.testing.assert_close(p.grad, times * gradients[key], rtol=1e-9, atol=1e-11)
    same = [torch.empty_like(step.weights) for _ in counts]
    dist.all_gather(same, step.weights)
    assert all(torch.equal(one, step.weights) for one in same), "the same bits on all ranks"


def uneven(size: int) -> list[int]:
    return [[3, 1, 4, 2][rank % 4] for rank in range(size)]


def accumulated(name: str, keep: str, empty: bool = False) -> None:
    """Micro-batches of all ranks, as one process with all of their losses has them."""
    counts = [0 if empty and rank == 1 else 1 + rank % 2 for rank in range(size())]  # micro-batches
    parts = [(rank, k) for rank, count in enumerate(counts) for k in range(count)]
    net, other = network(name), network(name)
    losses = torch.cat([losses_of(name, net, 2 + k, 10 * rank + k) for rank, k in parts])
    G = oracle_gramian(losses, [p for p in net.parameters() if p.shape != (3,) or name != "tied"])
    losses.backward(gramjd.UPGrad()(G))
    accumulator = gramjd.Accumulator(inputs=other, keep=keep, group=dist.group.WORLD)
    for rank, k in parts:
        if rank == dist.get_rank():
            accumulator.add(losses_of(name, other, 2 + k, 10 * rank + k))
    step = accumulator.step()
    torch.testing.assert_close(step.gramian, G, rtol=1e-10, atol=1e-12)
    for p, q in zip(other.parameters(), net.parameters(), strict=True):
        assert (p.grad is None or not p.grad.any()) if q.grad is None else True
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    assert len(accumulator) == 0


def accumulated_faults() -> None:
    """A rank whose micro-batch is not finite, or whose aggregator fails; then all is as before."""
    net = network("mlp")
    with pytest.raises(InputError, match="give `inputs`"):
        gramjd.Accumulator(group=dist.group.WORLD)
    wrapped = DistributedDataParallel(network("mlp"), find_unused_parameters=True)
    with pytest.raises(InputError, match="cannot be kept, as it has to be with a `group`"):
        gramjd.Accumulator(inputs=wrapped, group=dist.group.WORLD).add(losses_of("mlp", wrapped, 2, 0))

    def failing(G: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            raise ArithmeticError("no weights here")
        return G.new_ones(len(G))

    accumulator = gramjd.Accumulator(failing, inputs=net, group=dist.group.WORLD)
    accumulator.add(losses_of("mlp", net, 2, dist.get_rank()))
    with pytest.raises(RankError, match="rank 1: ArithmeticError: no weights here"):
        accumulator.step()
    assert all(p.grad is None for p in net.parameters())
    assert len(accumulator) == 2
    accumulated("mlp", "device")


def without_sync() -> None:
    """Two steps, the first of which DistributedDataParallel is told not to reduce: `.grad` is the sum of both."""
    net, other = network("mlp"), network("mlp")
    model = DistributedDataParallel(net)
    rank = dist.get_rank()
    for step, context in enumerate((model.no_sync(), contextlib.nullcontext())):
        with context:
            losses = losses_of("mlp", model, 2, 10 * step + rank)
            gramjd.gram_backward(losses, inputs=model, group=dist.group.WORLD)
        gramjd.gram_backward(torch.cat([losses_of("mlp", other, 2, 10 * step + r) for r in range(size())]))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def in_autocast(wrapped: bool) -> None:
    """The walk is that of one process under the same autocast."""
    net, other = network("tied").float(), network("tied").float()
    model = DistributedDataParallel(net, find_unused_parameters=True) if wrapped else net
    with torch.autocast("cpu", torch.bfloat16):
        mine = losses_of("tied", model, 3, dist.get_rank())
        joint = torch.cat([losses_of("tied", other, 3, rank) for rank in range(size())])
    step = gramjd.gram_backward(mine, inputs=model, group=dist.group.WORLD)
    expected = gramjd.gram_backward(joint)
    torch.testing.assert_close(step.gramian, expected.gramian, rtol=5e-3, atol=1e-3)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        if q.grad is not None:
            assert (p.grad - q.grad).abs().max() <= 0.02 * q.grad.abs().max()


def in_another_order() -> None:
    """The graphs are alike, and ranks use parameters of one shape in another order: places in the module decide."""
    torch.manual_seed(0)
    net = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).double()
    other = copy.deepcopy(net)

    def losses_on(rank: int, layers: nn.ModuleList) -> Tensor:
        hidden = torch.randn(2, 4, generator=torch.Generator().manual_seed(rank)).double()
        for layer in list(layers)[:: -1 if rank == 1 else 1]:
            hidden = layer(hidden).tanh()
        return hidden.square().sum(1)

    losses = torch.cat([losses_on(rank, other) for rank in range(size())])
    G = oracle_gramian(losses, list(other.parameters()))
    losses.backward(gramjd.UPGrad()(G))
    step = gramjd.gram_backward(losses_on(dist.get_rank(), net), inputs=net, group=dist.group.WORLD)
    torch.testing.assert_close(step.gramian, G, rtol=1e-10, atol=1e-12)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def of_means(update: str, wrapped: bool = False) -> None:
    """Loss i is the mean over ranks: one process that has the mean losses."""
    net = network("tasks")
    ranks = range(size())
    losses = torch.stack([losses_of("tasks", net, 3, rank) for rank in ranks]).mean(0)
    G = oracle_gramian(losses, list(net.parameters()))
    w = gramjd.UPGrad()(G)
    losses.backward(w)
    other = network("tasks")
    model = DistributedDataParallel(other) if wrapped else other
    step = gramjd.gram_backward(
        losses_of("tasks", model, 3, dist.get_rank()),
        inputs=model if wrapped else None,
        update=update,
        group=dist.group.WORLD,
        across="mean",
    )
    torch.testing.assert_close(step.gramian, G, rtol=1e-10, atol=1e-12)
    for p, q in zip(other.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


class Tasks(nn.Module):
    """Heads on a trunk; a head that one task has alone, and a part of the trunk that two share."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.pair = nn.Linear(6, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(6, 1)])

    def losses(self, rank: int) -> dict[str, Tensor]:
        hidden = self.trunk(torch.randn(7, 5, generator=torch.Generator().manual_seed(rank)).double())
        pair = self.pair(hidden).tanh()
        given = zip("abc", self.heads, (pair, pair, hidden), strict=True)
        return {name: head(x).square().mean() for name, head, x in given}


def of_tasks(update: str, wrapped: bool = False) -> None:
    """A multi-task step is that of one process that has the mean losses."""
    torch.manual_seed(0)
    net = Tasks().double()
    other = copy.deepcopy(net)
    if wrapped:
        DistributedDataParallel(other)  # its hooks wait for a backward pass that is never made
    for _ in range(2):
        parts = [net.losses(rank) for rank in range(size())]
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in "abc"}
        expected = gramjd.mtl_backward(means)
        step = gramjd.mtl_backward(other.losses(dist.get_rank()), update=update, group=dist.group.WORLD)
        assert step.names == ("a", "b", "c")
        torch.testing.assert_close(step.gramian, expected.gramian, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(step.weights, expected.weights)
        for p, q in zip(other.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


def gramian_only(name: str, counts: Sequence[int]) -> None:
    net = network(name)
    found = gramjd.gramian(losses_of(name, net, counts[dist.get_rank()], dist.get_rank()), group=dist.group.WORLD)
    torch.testing.assert_close(found, expected(name, counts)[0], rtol=1e-10, atol=1e-12)


def counted(name: str, counts: Sequence[int], across: str = "stack") -> None:
    """The bytes that `explain` plans are those that are sent, rank by rank and parameter by parameter."""
    seen: list[tuple[list[exchange.Sent], int]] = []

    class Counting(side.Exchange):
        def _add(self, places: Sequence[int]) -> None:
            before, known = self.ranks.sent, len(self.sent)
            super()._add(places)
            seen.append((self.sent[known:], self.ranks.sent - before))

    net, rank = network(name), dist.get_rank()
    planned = gramjd.explain(losses_of(name, net, counts[rank], rank), net, group=dist.group.WORLD, across=across)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side, "Exchange", Counting)
        gramjd.gram_backward(
            losses_of(name, net, counts[rank], rank), inputs=net, group=dist.group.WORLD, across=across
        )
    assert [(one.way, one.bytes) for one in planned.sent] == [(one.way, one.bytes) for sent, _ in seen for one in sent]
    assert [sum(one.bytes for one in sent) for sent, _ in seen] == [counted for _, counted in seen]
    assert len(seen) < len(planned.sent), "small parameters go together"
    assert planned.all_losses == (counts[0] if across == "mean" else sum(counts))
    assert "between ranks" in str(planned)
    if name == "wide":
        # A linear layer of 40 x 50 with T = 3: factors, the bytes of its inputs and gradients to half of the others.
        (layer,) = [one for one in planned.sent if one.parameter == "1.weight" and one.way == "factors"]
        ranks = size()
        steps = ranks // 2 - (ranks % 2 == 0 and rank < ranks // 2)
        numbers = 8 * counts[rank] * 3 * (40 + 50) * steps
        assert numbers <= layer.bytes <= numbers + 3000 * steps  # with what says what they are
        # A vector of 50 numbers: rows, cut into as many parts as there are ranks.
        (vector,) = [one for one in planned.sent if one.parameter == "2.weight"]
        assert vector == Sent("2.weight", "rows", 8 * counts[rank] * -(-50 // ranks) * (ranks - 1))


def within_budget() -> None:
    """Rows that the memory budget does not allow are not formed: factors go instead."""
    net, rank = network("wide"), dist.get_rank()
    losses = losses_of("wide", net, 3, rank)
    expected = gramjd.gramian(losses, group=dist.group.WORLD)
    found = gramjd.gramian(losses, group=dist.group.WORLD, memory_budget=1000)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for budget in (None, 1000):
        step = gramjd.gram_backward(
            losses_of("wide", net, 3, rank), group=dist.group.WORLD, across="mean", memory_budget=budget
        )
        m = len(losses)
        blocks = expected.unflatten(0, (size(), m)).unflatten(2, (size(), m))
        torch.testing.assert_close(step.gramian, blocks.mean((0, 2)), rtol=1e-10, atol=1e-12)


def subgroup() -> None:
    """Two of the ranks make a step by themselves."""
    group = dist.new_group([1, 2])
    if dist.get_rank() in (1, 2):
        net = network("mlp")
        rank = dist.get_rank(group)
        found = gramjd.gramian(losses_of("mlp", net, 2 + rank, rank), group=group)
        torch.testing.assert_close(found, expected("mlp", [2, 3])[0], rtol=1e-10, atol=1e-12)
    else:
        with pytest.raises(InputError, match="`group` is a str; expected a process group"):
            gramjd.gramian(losses_of("mlp", network("mlp"), 2, 0), group="world")
        with pytest.raises(InputError, match="no member"):
            gramjd.gramian(losses_of("mlp", network("mlp"), 2, 0), group=group)
    dist.barrier()


# -- faults -----------------------------------------------------------------------------------------------------------


def fails(words: str, take: Callable[[nn.Module], object]) -> None:
    """Every rank raises the same RankError, nothing was written, and the next step is right."""
    net = network("mlp")
    with pytest.raises(RankError, match=words) as caught:
        take(net)
    said: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(said, str(caught.value))
    assert len(set(said)) == 1, said
    assert all(p.grad is None for p in net.parameters())
    agrees("mlp", uneven(dist.get_world_size()), "backward")


def not_finite(net: nn.Module) -> object:
    losses = losses_of("mlp", net, 2, dist.get_rank())
    return gramjd.gram_backward(losses / 0 if dist.get_rank() == 1 else losses, group=dist.group.WORLD)


def another_structure(net: nn.Module) -> object:
    if dist.get_rank() == 1:
        net = nn.Sequential(*list(net)[:2])
    losses = net(torch.randn(2, 5).double()).square().sum(1)
    return gramjd.gram_backward(losses, group=dist.group.WORLD)


def another_graph(net: nn.Module) -> object:
    """The same parameters in another order: they have equal shapes, and would be taken for one another."""
    layers = [nn.Linear(4, 4).double() for _ in range(2)]
    layers = layers[::-1] if dist.get_rank() == 1 else layers
    hidden = layers[0](torch.randn(2, 4).double())
    hidden = hidden.relu() if dist.get_rank() == 1 else hidden.tanh()
    return gramjd.gram_backward(layers[1](hidden).square().sum(1), group=dist.group.WORLD)


class Refuses(torch.autograd.Function):
    """A backward pass that fails, in the middle of the walk."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ValueError("no gradient here")


def in_the_walk(net: nn.Module) -> object:
    first, *rest = net
    hidden = first(torch.randn(2, 5).double())
    hidden = Refuses.apply(hidden) if dist.get_rank() == 1 else hidden * 1
    for layer in rest:
        hidden = layer(hidden)
    return gramjd.gram_backward(hidden.square().sum(1), inputs=net, group=dist.group.WORLD)


def in_the_weights(net: nn.Module) -> object:
    def aggregator(G: Tensor) -> Tensor:
        if dist.get_rank() == 1:
            raise ArithmeticError("no weights here")
        return G.new_ones(len(G))

    return gramjd.gram_backward(losses_of("mlp", net, 2, dist.get_rank()), aggregator, group=dist.group.WORLD)


def no_losses(net: nn.Module) -> object:
    return gramjd.gram_backward(torch.empty(0), inputs=net, group=dist.group.WORLD)


def bad_option(net: nn.Module) -> object:
    update = "twice" if dist.get_rank() == 1 else "reuse"
    return gramjd.gram_backward(losses_of("mlp", net, 2, dist.get_rank()), update=update, group=dist.group.WORLD)


def not_reached(net: nn.Module) -> object:
    inputs = [*net.parameters(), torch.ones(4, dtype=torch.float64, requires_grad=True)]
    return gramjd.gram_backward(losses_of("mlp", net, 2, dist.get_rank()), inputs=inputs, group=dist.group.WORLD)


def means_by_name() -> None:
    """Names are those of the means, and an aggregator by name gets them."""
    net = network("tasks")
    losses = losses_of("tasks", net, 3, dist.get_rank())
    named = dict(zip("abc", losses, strict=True))
    aggregator = gramjd.ByName(gramjd.UPGrad(), ["c", "a", "b"])
    step = gramjd.gram_backward(named, aggregator, group=dist.group.WORLD, across="mean")
    assert step.names == ("a", "b", "c")
    torch.testing.assert_close(step.weights, gramjd.UPGrad()(step.gramian))


def size() -> int:
    return dist.get_world_size()


SCENES: dict[str, Callable[[], object]] = {
    **{
        f"{name}_{update}": (lambda name=name, update=update: agrees(name, uneven(size()), update))
        for name in MODELS
        for update in ("backward", "reuse")
    },
    "empty_rank": lambda: agrees("mlp", [2, 0, 3, 1][: size()], "reuse"),
    "empty_first": lambda: agrees("tied", [0, 2, 3, 1][: size()], "backward"),
    "wrapped": lambda: agrees("mlp", uneven(size()), "backward", wrapped=True),
    "wrapped_reuse": lambda: agrees("mlp", uneven(size()), "reuse", wrapped=True),
    "wrapped_static": lambda: agrees("mlp", uneven(size()), "backward", wrapped=True, static_graph=True),
    "wrapped_views": lambda: agrees("mlp", uneven(size()), "backward", wrapped=True, gradient_as_bucket_view=True),
    "wrapped_unused": lambda: agrees("tied", uneven(size()), "backward", wrapped=True, find_unused_parameters=True),
    "means": lambda: of_means("backward"),
    "means_reuse": lambda: of_means("reuse"),
    "means_wrapped": lambda: of_means("backward", wrapped=True),
    "means_by_name": means_by_name,
    "of_tasks": lambda: of_tasks("backward"),
    "of_tasks_reuse": lambda: of_tasks("reuse"),
    "of_tasks_wrapped": lambda: of_tasks("backward", wrapped=True),
    "gramian": lambda: gramian_only("cnn", uneven(size())),
    "subgroup": subgroup,
    "counted": lambda: [counted(name, uneven(size())) for name in MODELS],
    "counted_means": lambda: counted("tasks", [3] * size(), "mean"),
    "within_budget": within_budget,
    "in_another_order": in_another_order,
    "without_sync": without_sync,
    "in_autocast": lambda: in_autocast(wrapped=False),
    "in_autocast_wrapped": lambda: in_autocast(wrapped=True),
    **{f"accumulated_{name}": (lambda name=name: accumulated(name, "device")) for name in MODELS},
    "accumulated_on_cpu": lambda: accumulated("mlp", "cpu"),
    "accumulated_by_one": lambda: accumulated("tied", "device", empty=True),
    "accumulated_faults": accumulated_faults,
    "not_finite": lambda: fails("rank 1: LossError: losses has NaN", not_finite),
    "another_structure": lambda: fails("disagree about the number of parameters: rank 0 has 6", another_structure),
    "another_graph": lambda: fails("disagree about the graph of the losses", another_graph),
    "in_the_walk": lambda: fails("rank 1: ValueError: no gradient here", in_the_walk),
    "in_the_weights": lambda: fails("rank 1: ArithmeticError: no weights", in_the_weights),
    "no_losses": lambda: fails("no rank has a loss", no_losses),
    "not_reached": lambda: fails(r"an input \(shape \(4,\)\) is not reached by any loss of any rank", not_reached),
    "bad_option": lambda: fails("rank 1: InputError: update is 'twice'", bad_option),
}

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=150))
    try:
        for scene in sys.argv[1:]:
            SCENES[scene]()
            dist.barrier()
    finally:
        dist.destroy_process_group()
    end()
