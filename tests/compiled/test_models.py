"""Whole models through a graph: what each family has that could be in the way of one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import gramjd

pytestmark = [
    pytest.mark.filterwarnings("ignore::gramjd.errors.DenseRowsWarning"),
    pytest.mark.filterwarnings("ignore::gramjd.errors.InputsWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
M = 4


def images() -> tuple[Tensor, ...]:
    return torch.randn(M, 3, 8, 8), torch.randint(3, (M,))


def tokens(length: int = 5) -> tuple[Tensor, ...]:
    return (torch.randint(11, (M, length + 1)),)


def labelled(model: nn.Module) -> Callable[..., Tensor]:
    return lambda x, y: cross_entropy(model(x), y, reduction="none")


def of_sequences(model: nn.Module) -> Callable[..., Tensor]:
    def losses(ids: Tensor) -> Tensor:
        out = model(ids[:, :-1])
        logits = out if isinstance(out, Tensor) else out.logits
        return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    return losses


def of_tokens(model: nn.Module) -> Callable[..., Tensor]:
    return lambda ids: cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none")


class Tied(nn.Module):
    """A decoder whose head is its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.positions(torch.arange(ids.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.block(x, src_mask=mask, is_causal=True) @ self.table.weight.T


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.table, self.net, self.head = nn.Embedding(11, 6), kind(6, 5, batch_first=True), nn.Linear(5, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.net(self.table(ids))[0])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.first, x, use_reentrant=False))


class Slices(nn.Module):
    """Writes to slices, reads through an index of its own, rolls and scatters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 6)
        hidden = self.layer(x).tanh()
        out[:, 2:5] = hidden[:, :3]
        out[:, 0] = hidden[:, 5]
        return self.head(out[:, torch.tensor([5, 2, 2, 1, 0, 3])].roll(1, 1))


class Physics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, points: Tensor) -> Tensor:
        t, x = points[:, :1].clone().requires_grad_(), points[:, 1:].clone().requires_grad_()
        u = self.net(torch.cat([t, x], 1))
        ut, ux = torch.autograd.grad(u.sum(), (t, x), create_graph=True)
        (uxx,) = torch.autograd.grad(ux.sum(), x, create_graph=True)
        return (ut - 0.1 * uxx).square().squeeze(1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=2),
        nn.GroupNorm(2, 4), nn.ELU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 3),
    )  # fmt: skip


def samples_and_tasks(model: nn.Module) -> Callable[..., list[Tensor]]:
    return lambda x, y: [cross_entropy(model(x), y, reduction="none"), model(x).square().mean(1), model(x).abs().mean()]


def huggingface(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{name}Config")(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, pad_token_id=0, **options,
        )  # fmt: skip
        kind = {"Bert": "BertForMaskedLM", "GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
        return getattr(transformers, kind)(config)

    return make


def small(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(M, *shape), torch.randint(3, (M,)))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], Callable[[nn.Module], Callable]]] = {
    "convolutions": (convolutional, images, labelled),
    "tied": (Tied, tokens, of_sequences),
    "per token": (Tied, tokens, of_tokens),
    "lstm": (lambda: Recurrent(nn.LSTM), tokens, of_sequences),
    "gru": (lambda: Recurrent(nn.GRU), tokens, of_sequences),
    "checkpoint": (Checkpointed, small(6), labelled),
    "slices": (Slices, small(6), labelled),
    "physics": (Physics, lambda: (torch.rand(M, 2),), lambda model: model),
    "samples and tasks": (lambda: nn.Linear(6, 3), small(6), samples_and_tasks),
    "encoder": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(18, 3)),
        small(3, 6),
        labelled,
    ),
    "gpt2": (huggingface("GPT2"), tokens, of_sequences),
    "llama": (huggingface("Llama", num_key_value_heads=1), tokens, of_sequences),
    "bert": (huggingface("Bert"), tokens, of_sequences),
}


DROPOUT = {"convolutions", "tied", "per token", "encoder", "gpt2", "bert"}


def assert_trained_alike(name: str, mode: str, **options: Any) -> None:
    """Three compiled steps after an eager one leave the parameters of four eager ones.

    Inductor draws other random numbers: with dropout the first steps alone are compared, by the step itself.
    """
    same_numbers = mode == "graph" or name not in DROPOUT
    make, data, losses_of = CASES[name]
    torch.manual_seed(0)
    model = make()
    other = copy.deepcopy(model)
    mine, theirs = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, other))
    step = gramjd.compile(losses_of(model), model, mine, mode=mode, **options)
    for n in range(4):
        batch = data()
        torch.manual_seed(n)
        result = step(*batch)
        torch.manual_seed(n)
        theirs.zero_grad()
        expected = gramjd.gram_backward(losses_of(other)(*batch), update="reuse")
        theirs.step()
        if n < 2 or same_numbers:
            torch.testing.assert_close(result.gramian, expected.gramian, rtol=1e-3, atol=1e-4)
    assert step.graphs == 1
    if not same_numbers:
        return
    for p, q in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_in_a_graph(name: str) -> None:
    assert_trained_alike(name, "graph")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_by_inductor(name: str) -> None:
    assert_trained_alike(name, "default")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_by_inductor() -> None:
    assert_trained_alike("checkpoint", "default", update="backward")
