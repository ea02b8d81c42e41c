"""Scenes for `test_spread.py`, of models that are spread over ranks: sharded by FSDP, tensor-parallel, and both."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

import gramjd
from gramjd.errors import GraphError, LossError, RankError, RanksWarning
from gramjd.kernels import products
from tests.oracle import oracle_gramian
from tests.ranks import end

WORDS, WIDTH, LENGTH = 12, 8, 6


class Attention(nn.Module):
    """Two heads of width 4, as many of them as the projections give."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        return self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a small network, each behind a norm and beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention, self.after = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.narrow(torch.tanh(self.wide(self.after(x))))


class Language(nn.Module):
    """A small language model; `tied`: its head is its embedding."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.table.weight
        self.remembers = True

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x) if self.remembers else checkpoint(block, x, use_reentrant=False)
        return self.head(self.norm(x))


def language(tied: bool = False) -> Language:
    torch.manual_seed(0)
    return Language(tied).double()


def tokens_of(rank: int) -> Tensor:
    """Two sentences and more on later ranks."""
    return torch.randint(WORDS, (2 + rank % 2, LENGTH), generator=torch.Generator().manual_seed(rank))


def losses_of(net: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    return cross_entropy(net(tokens).double().transpose(1, 2), tokens, reduction="none").mean(1)


def whole(tensor: Tensor | None) -> Tensor | None:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(
    net: nn.Module,
    other: nn.Module,
    step: gramjd.GramStep,
    losses: Tensor,
    times: int = 1,
    close: float = 1e-10,
) -> None:
    """The step on `net` is one on `other`, in one process, with these losses."""
    parameters = {name: p for name, p in other.named_parameters() if p.requires_grad}
    G = oracle_gramian(losses, list(parameters.values()))
    torch.testing.assert_close(step.gramian.double(), G, rtol=close, atol=close)
    w = gramjd.UPGrad()(G)
    torch.testing.assert_close(step.weights.double(), w, rtol=100 * close, atol=100 * close)
    gradients = torch.autograd.grad(losses, list(parameters.values()), w)
    mine = dict(net.named_parameters())
    for (name, p), g in zip(parameters.items(), gradients, strict=True):
        found = whole(mine[name].grad)
        assert found is not None, name
        torch.testing.assert_close(found.double(), times * g.double(), rtol=100 * close, atol=100 * close)
        assert p.grad is None


def ranks() -> range:
    return range(dist.get_world_size())


# -- FSDP -------------------------------------------------------------------------------------------------------------


def shard(net: Language, each: bool = True, **options: Any) -> Language:
    for block in net.blocks if each else ():
        fully_shard(block, **options)
    fully_shard(net, **options)
    return net


def sharded(
    net: Language, other: Language, inputs: Callable[[nn.Module], Any] = lambda net: None, **options: Any
) -> None:
    """Two steps, which add up, with one Gramian over all ranks."""
    for times in (1, 2):
        step = gramjd.gram_backward(
            losses_of(net, tokens_of(dist.get_rank())), inputs=inputs(net), group=dist.group.WORLD
        )
        losses = torch.cat([losses_of(other, tokens_of(rank)) for rank in ranks()])
        compare(net, other, step, losses, times, **options)


def in_precision() -> None:
    """The parameters are bfloat16 where they are used, and so they are in the model it is compared with."""
    net, other = language().float(), language().float()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard(net, mp_policy=policy)
    step = gramjd.gram_backward(losses_of(net, tokens_of(dist.get_rank())), group=dist.group.WORLD)
    losses = torch.cat([losses_of(other, tokens_of(rank)) for rank in ranks()])
    G = oracle_gramian(losses, list(other.parameters()))
    assert (step.gramian - G).abs().max() < 0.03 * G.abs().max()
    losses.backward(step.weights.double())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert (whole(p.grad) - q.grad).abs().max() < 0.05 * q.grad.abs().max() + 1e-3


def hybrid() -> None:
    """Sharded over two ranks, and alike on two pairs of them."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
    sharded(shard(language(), mesh=mesh), language())


def frozen() -> None:
    """Trained are the norms alone; sharded are all."""
    nets = language(), language()
    for net in nets:
        for name, p in net.named_parameters():
            p.requires_grad_("before" in name or "norm" in name)
    sharded(shard(nets[0]), nets[1])


def checkpointed() -> None:
    net = shard(language())
    net.remembers = False
    sharded(net, language())


def hooked() -> None:
    """A hook of a user on the output of a sharded module."""
    net, other = shard(language()), language()
    for one in (net, other):
        one.blocks[0].register_forward_hook(lambda module, given, out: out.register_hook(lambda g: 2 * g) and None)
    sharded(net, other)


def means() -> None:
    net, other = shard(language()), language()
    data = [torch.randint(WORDS, (3, LENGTH), generator=torch.Generator().manual_seed(rank)) for rank in ranks()]
    step = gramjd.gram_backward(losses_of(net, data[dist.get_rank()]), group=dist.group.WORLD, across="mean")
    compare(net, other, step, torch.stack([losses_of(other, one) for one in data]).mean(0))


def local() -> None:
    """Without a group each rank weighs its own losses, and FSDP averages."""
    net, other = shard(language()), language()
    for update in ("backward", "reuse"):
        net.zero_grad()
        gramjd.gram_backward(losses_of(net, tokens_of(dist.get_rank())), update=update)
        updates = []
        for rank in ranks():
            losses = losses_of(other, tokens_of(rank))
            w = gramjd.UPGrad()(gramjd.gramian(losses))
            updates.append(torch.autograd.grad(losses, list(other.parameters()), w))
        for p, *given in zip(net.parameters(), *updates, strict=True):
            torch.testing.assert_close(whole(p.grad), torch.stack(given).mean(0))


def only_some() -> None:
    """A Gramian of some inputs, sharded or gathered, and norms; the graph can be walked again."""
    net, other = shard(language()), language()
    mine, theirs = losses_of(net, tokens_of(dist.get_rank())), losses_of(other, tokens_of(dist.get_rank()))
    for pick in (lambda n: n.blocks[1], lambda n: n.head, lambda n: [n.blocks[0].wide.weight], lambda n: None):
        torch.testing.assert_close(gramjd.gramian(mine, pick(net)), gramjd.gramian(theirs, pick(other)))
    torch.testing.assert_close(gramjd.gradient_norms(mine), gramjd.gradient_norms(theirs))
    assert "table" in str(gramjd.explain(mine, inputs=net))


def trains() -> None:
    """Parameters after a few steps of Adam are those of one process."""
    net, other = shard(language()), language()
    optimizers = [torch.optim.Adam(one.parameters(), lr=1e-2) for one in (net, other)]
    for k in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        gramjd.gram_backward(losses_of(net, tokens_of(10 * k + dist.get_rank())), group=dist.group.WORLD)
        losses = torch.cat([losses_of(other, tokens_of(10 * k + rank)) for rank in ranks()])
        gramjd.gram_backward(losses)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(whole(p.detach()), q.detach(), rtol=1e-7, atol=1e-9)


def fails(words: str, losses: Callable[[nn.Module], Tensor], then: bool = True, group: Any = None) -> None:
    """Every rank raises the same error, and the next step is right."""
    net = shard(language())
    with pytest.raises(RankError, match=words):
        gramjd.gram_backward(losses(net), inputs=net, group=group or dist.group.WORLD)
    assert all(p.grad is None for p in net.parameters())
    sharded(net, language())


class Refuses(torch.autograd.Function):
    """A backward pass that fails on one rank, in the middle of the walk."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if dist.get_rank() == 1:
            raise ValueError("no gradient here")
        return g


def refusing(net: nn.Module) -> Tensor:
    """On one rank the walk fails between two blocks, which the others go on to gather."""

    handle = net.blocks[1].narrow.register_forward_hook(lambda module, given, out: Refuses.apply(out))
    losses = losses_of(net, tokens_of(dist.get_rank()))
    handle.remove()
    return losses


def not_finite(net: nn.Module) -> Tensor:
    losses = losses_of(net, tokens_of(dist.get_rank()))
    return losses / 0 if dist.get_rank() == 1 else losses


def no_losses(net: nn.Module) -> Tensor:
    losses = losses_of(net, tokens_of(dist.get_rank()))
    return losses[:0].detach() if dist.get_rank() == 1 else losses


def another_group() -> None:
    """Losses of two ranks, in a model that is sharded over three."""
    net, pair = shard(language()), dist.new_group([0, 1])
    losses = losses_of(net, tokens_of(dist.get_rank()))
    if dist.get_rank() < 2:
        with pytest.raises(RankError, match="sharded by FSDP over 3 ranks"):
            gramjd.gram_backward(losses, group=pair)
    dist.barrier()


def refused() -> None:
    """What cannot follow says so before anything is sent."""
    net = shard(language())
    losses = losses_of(net, tokens_of(0))
    for take in (
        lambda: gramjd.mtl_backward([losses.sum(), losses.square().sum()], gramjd.UPGrad()),
        lambda: gramjd.gram_backward(losses, gramjd.GradDrop()),
        lambda: gramjd.gramian(losses, other=losses),
    ):
        with pytest.raises(GraphError, match="spread over processes"):
            take()


# -- tensor parallel --------------------------------------------------------------------------------------------------


def parallel(net: Language, mesh: DeviceMesh, sequence: bool = False) -> Language:
    """Attention and networks cut by columns and rows; `sequence`: what lies between them cut along the sentence."""
    plan: dict[str, Any] = {"table": RowwiseParallel(input_layouts=Replicate())}
    given: Any = Replicate()
    if sequence:
        given = Shard(1)
        plan["table"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        plan["norm"] = SequenceParallel()
    plan["head"] = ColwiseParallel(input_layouts=given, output_layouts=Replicate())
    parallelize_module(net, mesh, plan)
    for block in net.blocks:
        inner: dict[str, Any] = {
            "attention.query": ColwiseParallel(),
            "attention.key": ColwiseParallel(),
            "attention.value": ColwiseParallel(),
            "attention.out": RowwiseParallel(output_layouts=given),
            "wide": ColwiseParallel(input_layouts=given),
            "narrow": RowwiseParallel(output_layouts=given),
        }
        if sequence:
            inner |= {
                "before": SequenceParallel(),
                "after": SequenceParallel(),
                "attention": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
            }
        parallelize_module(block, mesh, inner)
    return net


def tensor_parallel(sequence: bool) -> None:
    """The ranks have the same losses."""
    net, other = parallel(language(), init_device_mesh("cpu", (len(ranks()),)), sequence), language()
    for times in (1, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RanksWarning)  # all ranks know all losses
            step = gramjd.gram_backward(losses_of(net, tokens_of(1)), update="reuse")
        compare(net, other, step, losses_of(other, tokens_of(1)), times)
    torch.testing.assert_close(
        gramjd.gramian(losses_of(net, tokens_of(1)), net.blocks[0]),
        gramjd.gramian(losses_of(other, tokens_of(1)), other.blocks[0]),
    )


class Norms(nn.Module):
    """A part that is cut along the sentence between two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.norm = nn.Linear(5, 8), nn.Linear(8, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.narrow(torch.tanh(self.wide(x)))))


def of_all_kinds() -> None:
    """Losses per sentence, per token and per task, and a single one; dense where a token's row is cut over ranks."""
    mesh = init_device_mesh("cpu", (len(ranks()),))
    torch.manual_seed(0)
    net = Norms().double()
    other = copy.deepcopy(net)
    plan = {
        "wide": ColwiseParallel(),
        "narrow": RowwiseParallel(output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    parallelize_module(net, mesh, plan)
    data = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    for reduce in (lambda out: out.sum((1, 2)), lambda out: out.sum(2), lambda out: out.mean((0, 1)), torch.sum):
        for p in net.parameters():
            p.grad = None
        step = gramjd.gram_backward(reduce(net(data).square()))
        compare(net, other, step, reduce(other(data).square()).reshape(-1))
    out = DTensor.from_local(net(data).square().sum((1, 2)), mesh, [Replicate()])
    with pytest.raises(LossError, match=r"pass losses.full_tensor\(\)"):
        gramjd.gram_backward(out)


def of_all_modules() -> None:
    """Modules that are used twice, nested, or have convolutions, recurrences and parameters of parameters."""
    given: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)), nn.Tanh(), nn.Linear(5, 3)), (5,)),
        (lambda: nn.Sequential(weight_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)), (5,)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 3)), (2, 5)),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), (5,)),
        (Twice, (5,)),
        (Recurrent, (4, 5)),
    ]
    kinds = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.Conv1d, nn.LSTM, nn.Sequential)
    for make, shape in given:
        torch.manual_seed(0)
        net = make().double()
        other = copy.deepcopy(net)
        for module in list(net.modules())[:0:-1]:
            if isinstance(module, kinds):
                fully_shard(module)
        fully_shard(net)

        def losses_on(rank: int, model: nn.Module, shape: tuple[int, ...] = shape) -> Tensor:
            data = torch.randn(3, *shape, generator=torch.Generator().manual_seed(rank)).double()
            return model(data).square().flatten(1).sum(1)

        for times in (1, 2):
            step = gramjd.gram_backward(losses_on(dist.get_rank(), net), group=dist.group.WORLD)
            compare(net, other, step, torch.cat([losses_on(rank, other) for rank in ranks()]), times)


class Twice(nn.Module):
    """A module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(self.first(x).tanh()).tanh())


class Recurrent(nn.Module):
    """An LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


def in_float32() -> None:
    """Products of whole tensors are left to PyTorch, whatever library is asked for."""
    mesh = init_device_mesh("cpu", (len(ranks()),))
    net, other = parallel(language().float(), mesh), language().float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LEAST", 0)
        patch.setattr(products, "THIN", 1)
        step = gramjd.gram_backward(losses_of(net, tokens_of(1)), backend="auto")
    compare(net, other, step, losses_of(other, tokens_of(1)), close=1e-4)


def both(sequence: bool, sharding: bool) -> None:
    """Pairs of ranks have one model between them, and each pair its own losses."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    net, other = parallel(language(), mesh["tensor"], sequence), language()
    if sharding:
        shard(net, mesh=mesh["data"])
    mine = mesh.get_coordinate()[0]
    for times in (1, 2):
        step = gramjd.gram_backward(losses_of(net, tokens_of(mine)), group=mesh["data"].get_group())
        losses = torch.cat([losses_of(other, tokens_of(rank)) for rank in range(2)])
        compare(net, other, step, losses, times)


def random_weights() -> None:
    """Weights that are drawn are those of the first rank on all of them."""
    net = parallel(language(), init_device_mesh("cpu", (len(ranks()),)))
    torch.manual_seed(dist.get_rank())
    step = gramjd.gram_backward(losses_of(net, tokens_of(1)), gramjd.Random())
    said: list[Any] = [None] * len(ranks())
    dist.all_gather_object(said, step.weights.tolist())
    assert all(one == said[0] for one in said)


SCENES: dict[str, Callable[[], None]] = {
    "each": lambda: sharded(shard(language()), language()),
    "root_only": lambda: sharded(shard(language(), each=False), language()),
    "kept": lambda: sharded(shard(language(), reshard_after_forward=False), language()),
    "kept_in_pairs": lambda: sharded(shard(language(), reshard_after_forward=2), language()),
    "tied": lambda: sharded(shard(language(tied=True)), language(tied=True)),
    "inputs": lambda: sharded(shard(language()), language(), lambda net: net),
    "inputs_listed": lambda: sharded(shard(language()), language(), lambda net: list(net.parameters())),
    "in_precision": in_precision,
    "hybrid": hybrid,
    "frozen": frozen,
    "checkpointed": checkpointed,
    "hooked": hooked,
    "means": means,
    "local": local,
    "only_some": only_some,
    "trains": trains,
    "in_the_walk": lambda: fails("rank 1: ValueError: no gradient here", refusing),
    "not_finite": lambda: fails("rank 1: LossError: losses has NaN", not_finite),
    "no_losses": lambda: fails("FSDP needs a backward pass on every rank", no_losses),
    "another_group": another_group,
    "refused": refused,
    "tensor": lambda: tensor_parallel(sequence=False),
    "tensor_sequence": lambda: tensor_parallel(sequence=True),
    "of_all_kinds": of_all_kinds,
    "of_all_modules": of_all_modules,
    "in_float32": in_float32,
    "random_weights": random_weights,
    "tensor_data": lambda: both(sequence=False, sharding=False),
    "tensor_sharded": lambda: both(sequence=False, sharding=True),
    "tensor_sequence_sharded": lambda: both(sequence=True, sharding=True),
}

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    try:
        for scene in sys.argv[1:]:
            SCENES[scene]()
            dist.barrier()
    finally:
        dist.destroy_process_group()
    end()
