"""What the losses look like: vectors, lists, matrices, scalars, selections, and added regularisers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.mlp import B, I, O, data, mlp
from tests.zoo.registry import Built, add, fit, param

T = 3


def samples(b: int = B) -> Tensor:
    return fit(mlp(I, 7, O)(data(b, I)))


def tokens() -> Tensor:
    """One loss per position, positions independent."""
    out = mlp(I, 7, O)(data(B, T, I))
    return F.mse_loss(out, torch.randn_like(out), reduction="none").mean(2)


def attended_tokens() -> Tensor:
    """One loss per position, positions mixed by attention within a sample."""
    q, k, v = (nn.Linear(I, 4) for _ in range(3))
    x = data(B, T, I)
    scores = (q(x) @ k(x).mT / 2).softmax(-1)
    out = nn.Linear(4, O)(scores @ v(x))
    return F.cross_entropy(out.flatten(0, 1), torch.randint(0, O, (B * T,)), reduction="none").view(B, T)


def tasks(n: int = 3, tied: bool = False) -> list[Tensor]:
    """One scalar per task on a shared trunk, each with a head."""
    trunk, heads = mlp(I, 7, 5), [nn.Linear(5, O) for _ in range(n)]
    hidden = trunk(data()).tanh()
    return [fit((heads[0] if tied else head)(hidden)).mean() for head in heads]


def sample_tasks() -> Tensor:
    """[B, tasks] from separate heads."""
    trunk, heads = mlp(I, 7, 5), [nn.Linear(5, O) for _ in range(3)]
    hidden = trunk(data()).tanh()
    return torch.stack([fit(head(hidden)) for head in heads], 1)


def sample_tasks_list() -> list[Tensor]:
    losses = sample_tasks()
    return [losses[:, 0], losses[:, 2], losses[:, 1]]


def sample_tasks_one_head() -> Tensor:
    return F.mse_loss(mlp(I, 7, O)(data()), data(B, O), reduction="none")


def two_batches() -> list[Tensor]:
    model = mlp(I, 7, O)
    return [fit(model(data(3, I))), fit(model(data(4, I)))]


def two_batches_cat() -> Tensor:
    return torch.cat(two_batches())


def regularised() -> Tensor:
    model = mlp(I, 7, O)
    return fit(model(data())) + 0.1 * model[0].weight.square().sum()


def regularised_all() -> Tensor:
    model = mlp(I, 7, O)
    return fit(model(data())) + sum(p.norm() for p in model.parameters())


def regulariser_as_task() -> list[Tensor]:
    model = mlp(I, 7, O)
    return [fit(model(data())), model[0].weight.abs().sum() + model[2].weight.square().sum()]


def regulariser_per_loss() -> Tensor:
    """Each loss has its own weight decay."""
    model = mlp(I, 7, O)
    return fit(model(data())) + torch.rand(B) * model[2].weight.square().sum()


def activation_penalty() -> Tensor:
    first, last = nn.Linear(I, 7), nn.Linear(7, O)
    hidden = first(data()).tanh()
    return fit(last(hidden)) + 0.1 * hidden.abs().sum(1)


def with_constants() -> list[Tensor]:
    """Losses that depend on no parameter are zero rows."""
    return [samples(3), torch.tensor(2.0), samples(2)]


def one_detached() -> Tensor:
    losses = samples()
    return torch.cat([losses[:2], losses[2:3].detach(), losses[3:]])


def deep_supervision() -> list[Tensor]:
    """Losses at different depths reach different leaves."""
    a, b, c = nn.Linear(I, 5), nn.Linear(5, 5), nn.Linear(5, 5)
    h1 = a(data()).tanh()
    h2 = b(h1).tanh()
    return [fit(h1).mean(), fit(h2).mean(), fit(c(h2)).mean()]


def deep_supervision_samples() -> Tensor:
    """The same losses see several depths: cotangents meet at hidden layers."""
    a, b, c = nn.Linear(I, 5), nn.Linear(5, 5), nn.Linear(5, 5)
    h1 = a(data()).tanh()
    h2 = b(h1).tanh()
    return fit(h1) + 0.5 * fit(h2) + 0.25 * fit(c(h2))


def mixed_kinds() -> list[Tensor]:
    """A per-sample vector, a task scalar and a per-token matrix on one trunk."""
    trunk, a, b, c = nn.Linear(I, 7), nn.Linear(7, O), nn.Linear(7, 1), nn.Linear(7, 2)
    hidden = trunk(data(2, T, I)).tanh()
    return [fit(a(hidden.mean(1))), b(hidden).square().mean(), c(hidden).square().sum(2)]


def shared_samples() -> list[Tensor]:
    """Two heads, each on an overlapping part of the batch."""
    trunk, a, b = nn.Linear(I, 7), nn.Linear(7, O), nn.Linear(7, O)
    hidden = trunk(data()).tanh()
    return [fit(a(hidden[:3])), fit(b(hidden[1:]))]


def crossed_rows() -> list[Tensor]:
    """The second task pairs with the batch in reverse order."""
    trunk, a, b = nn.Linear(I, 7), nn.Linear(7, O), nn.Linear(7, O)
    hidden = trunk(data()).tanh()
    return [fit(a(hidden)), fit(b(hidden)).flip(0)]


def crossed_sum() -> Tensor:
    """Loss i is a term of sample i plus a term of sample m - 1 - i."""
    first, second = crossed_rows()
    return first + second


def duplicated() -> Tensor:
    losses = samples()
    return losses[[0, 0, 3, 1, 3]]


def grouped_means() -> Tensor:
    """Each loss averages a group of two samples."""
    return samples(6).view(3, 2).mean(1)


def interleaved_groups() -> Tensor:
    return samples(6).view(2, 3).mean(0)


def ragged_groups() -> Tensor:
    return torch.stack([part.mean() for part in samples(6).split([1, 3, 2])])


def scatter_groups() -> Tensor:
    return torch.zeros(3).index_add(0, torch.tensor([0, 2, 1, 0, 2]), samples())


def mixing_matrix() -> Tensor:
    """Losses are combinations of sample losses."""
    return torch.rand(3, B) @ samples()


def scalar_inputs() -> Built:
    w, b = param(), param()
    return (w * data(B) + b).square(), [w, b]


MASK = torch.tensor([True, False, True, True, False])
add(
    "shape",
    "sample",
    {
        "per-sample": samples,
        "m-one": lambda: samples(1),
        "m-two": lambda: samples(2),
        "column": lambda: samples().unsqueeze(1),
        "row": lambda: samples().unsqueeze(0),
        "grid": lambda: samples(6).view(2, 3),
        "grid-transposed": lambda: samples(6).view(2, 3).t(),
        "cube": lambda: samples(8).view(2, 2, 2).permute(2, 0, 1),
        "sample-list": lambda: [samples()],
        "tokens": tokens,
        "tokens-flat": lambda: tokens().flatten(),
        "tokens-transposed": lambda: tokens().t(),
        "tokens-mean": lambda: tokens().mean(1),
        "tokens-position-mean": lambda: tokens().mean(0),
        "tokens-first": lambda: tokens()[:, 0],
        "tokens-last-two": lambda: tokens()[:, 1:],
        "tokens-attended": attended_tokens,
        "tokens-attended-flat": lambda: attended_tokens().view(-1),
        "tokens-attended-mean": lambda: attended_tokens().mean(1),
        "tokens-attended-last": lambda: attended_tokens()[:, -1],
        "sample-tasks": sample_tasks,
        "sample-tasks-list": sample_tasks_list,
        "sample-tasks-one-head": sample_tasks_one_head,
        "sample-tasks-mean": lambda: sample_tasks().mean(1),
        "strided": lambda: samples()[::2],
        "tail": lambda: samples()[2:],
        "permuted": lambda: samples()[torch.tensor([3, 1, 4, 0, 2])],
        "masked": lambda: samples()[MASK],
        "flipped": lambda: samples().flip(0),
        "rolled": lambda: samples().roll(2),
        "weighted": lambda: samples() * torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0]),
        "exp": lambda: samples().exp(),
        "scaled-tiny": lambda: samples() * 1e-12,
        "scaled-huge": lambda: samples() * 1e12,
        "scales-apart": lambda: samples() * torch.tensor([1.0, 1e-3, 1e3, 1.0, 1e2]),
        "activation-penalty": activation_penalty,
        "deep-supervision-samples": deep_supervision_samples,
        "shared-samples": shared_samples,
    },
)

add(
    "shape",
    None,
    {
        "zero-dim": lambda: samples().mean(),
        "zero-dim-list": lambda: [samples().mean()],
        "tasks": tasks,
        "tasks-one-head": lambda: tasks(tied=True),
        "tasks-many": lambda: tasks(8),
        "tasks-tuple-stacked": lambda: torch.stack(tasks()),
        "tasks-weighted": lambda: torch.rand(2, 3) @ torch.stack(tasks()),
        "two-batches": two_batches,
        "two-batches-cat": two_batches_cat,
        "two-models": lambda: torch.cat([samples(3), samples(4)]),
        "regularised": regularised,
        "regularised-all": regularised_all,
        "regulariser-as-task": regulariser_as_task,
        "regulariser-per-loss": regulariser_per_loss,
        "one-detached": one_detached,
        "deep-supervision": deep_supervision,
        "mixed-kinds": mixed_kinds,
        "crossed-rows": crossed_rows,
        "crossed-sum": crossed_sum,
        "duplicated": duplicated,
        "grouped-means": grouped_means,
        "interleaved-groups": interleaved_groups,
        "ragged-groups": ragged_groups,
        "scatter-groups": scatter_groups,
        "mixing-matrix": mixing_matrix,
        "differences": lambda: samples().diff(),
        "cumulated": lambda: samples().cumsum(0),
        "sorted": lambda: samples().sort().values,
        "top-k": lambda: samples().topk(3).values,
        "worst-case": lambda: samples().max(),
        "softmax-of-losses": lambda: samples().softmax(0),
        "same-loss-twice": lambda: [loss for loss in [samples()] for _ in range(2)],
        "unbound": lambda: list(samples().unbind()),
        "unbound-reversed": lambda: list(samples().unbind())[::-1],
        "tokens-unbound": lambda: list(tokens().unbind(1)),
        "tokens-attended-unbound": lambda: list(attended_tokens().unbind(1)),
        "tokens-attended-position": lambda: attended_tokens().mean(0),
        "scalar-inputs": scalar_inputs,
    },
)

add("shape", None, {"with-constants": with_constants}, may_refuse=True)
