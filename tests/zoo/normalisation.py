"""Normalisation layers: which of them mix samples depends on the mode they are in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, net, param

IMAGE = (4, 3, 5, 4)
ROWS = (6, 5)


def on_images(norm: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[], Tensor]:
    return lambda: net(nn.Conv2d(3, 4, 2), norm(), nn.Conv2d(4, 2, 2), torch.tanh, shape=IMAGE)


def on_rows(norm: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[], Tensor]:
    return lambda: net(nn.Linear(5, 8), norm(), torch.tanh, nn.Linear(8, 3), shape=ROWS)


def on_tokens(norm: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[], Tensor]:
    return lambda: net(nn.Linear(5, 8), norm(), torch.tanh, nn.Linear(8, 3), shape=(3, 4, 5))


def trained(norm: nn.Module, *shape: int) -> nn.Module:
    """Give a batch norm running statistics and a non-trivial affine map."""
    for _ in range(2):
        norm(2 * torch.randn(*shape) + 1)
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return norm


def frozen(norm: nn.Module) -> nn.Module:
    """In training mode, with its own parameters frozen: statistics still mix the samples."""
    return norm.requires_grad_(False)


def hand_written(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def conditional_norm() -> Tensor:
    """Scale and shift made from a second input, per sample."""
    made = nn.Linear(3, 16)(torch.randn(6, 3))
    x = F.layer_norm(nn.Linear(5, 8)(torch.randn(*ROWS)), [8])
    return fit(x * (1 + made[:, :8]) + made[:, 8:])


def batch_norm_as_parameters() -> Tensor:
    """The functional form with per-channel parameters and given statistics."""
    x = nn.Linear(5, 4)(torch.randn(*ROWS))
    return fit(F.batch_norm(x, torch.randn(4), torch.rand(4) + 0.5, param(4), param(4)))


def shared_norm() -> Tensor:
    norm, a, b = nn.LayerNorm(5), nn.Linear(5, 5), nn.Linear(5, 5)
    return fit(norm(b(norm(a(torch.randn(*ROWS))).tanh())))


def tuned_norms_only() -> Tensor:
    first, norm, last = nn.Linear(5, 8).requires_grad_(False), nn.LayerNorm(8), nn.Linear(8, 3).requires_grad_(False)
    return fit(last(norm(first(torch.randn(*ROWS))).tanh()))


add(
    "norm",
    "sample",
    {
        "layer": on_rows(lambda: trained(nn.LayerNorm(8), 6, 8)),
        "layer-plain": on_rows(lambda: nn.LayerNorm(8, elementwise_affine=False)),
        "layer-no-bias": on_rows(lambda: nn.LayerNorm(8, bias=False)),
        "layer-tokens": on_tokens(lambda: trained(nn.LayerNorm(8), 3, 4, 8)),
        "layer-two-dims": on_tokens(lambda: trained(nn.LayerNorm((4, 8)), 3, 4, 8)),
        "layer-image": on_images(lambda: trained(nn.LayerNorm((4, 4, 3)), 4, 4, 4, 3)),
        "layer-hand-written": on_rows(lambda: hand_written),
        "layer-batch-second": lambda: fit(nn.LayerNorm(8)(nn.Linear(5, 8)(torch.randn(4, 3, 5))), batch_dim=1),
        "layer-shared": shared_norm,
        "rms": on_rows(lambda: trained(nn.RMSNorm(8), 6, 8)),
        "rms-two-dims": on_tokens(lambda: trained(nn.RMSNorm((4, 8)), 3, 4, 8)),
        "rms-hand-written": on_tokens(lambda: rms),
        "group": on_images(lambda: trained(nn.GroupNorm(2, 4), 4, 4, 3, 3)),
        "group-one": on_images(lambda: nn.GroupNorm(1, 4)),
        "group-each": on_images(lambda: nn.GroupNorm(4, 4, affine=False)),
        "group-rows": on_rows(lambda: trained(nn.GroupNorm(2, 8), 6, 8)),
        "instance": on_images(lambda: nn.InstanceNorm2d(4)),
        "instance-affine": on_images(lambda: trained(nn.InstanceNorm2d(4, affine=True), 4, 4, 3, 3)),
        "instance-eval": on_images(
            lambda: trained(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 4, 4, 3, 3).eval()
        ),
        "instance-1d": lambda: net(nn.Conv1d(3, 4, 2), nn.InstanceNorm1d(4, affine=True), shape=(4, 3, 7)),
        "local-response": on_images(lambda: nn.LocalResponseNorm(3)),
        "batch-eval": on_images(lambda: trained(nn.BatchNorm2d(4), 4, 4, 3, 3).eval()),
        "batch-eval-rows": on_rows(lambda: trained(nn.BatchNorm1d(8), 6, 8).eval()),
        "batch-eval-frozen": on_images(lambda: frozen(trained(nn.BatchNorm2d(4), 4, 4, 3, 3)).eval()),
        "batch-eval-plain": on_images(lambda: trained(nn.BatchNorm2d(4, affine=False), 4, 4, 3, 3).eval()),
        "batch-functional-eval": batch_norm_as_parameters,
        "conditional": conditional_norm,
        "tuned-only": tuned_norms_only,
        "unit-length": on_rows(lambda: lambda x: F.normalize(x, dim=1)),
        "standardised-by-sample": on_images(
            lambda: lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
        ),
    },
)

add(
    "norm",
    "dense",
    {
        "batch-train": on_images(lambda: trained(nn.BatchNorm2d(4), 4, 4, 3, 3)),
        "batch-train-rows": on_rows(lambda: trained(nn.BatchNorm1d(8), 6, 8)),
        "batch-train-sequence": lambda: net(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 2), shape=(4, 3, 6)),
        "batch-train-3d": lambda: net(
            nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1), torch.tanh, shape=(3, 2, 2, 3, 2)
        ),
        "batch-train-frozen": on_images(lambda: frozen(trained(nn.BatchNorm2d(4), 4, 4, 3, 3))),
        "batch-train-plain": on_images(lambda: nn.BatchNorm2d(4, affine=False)),
        "batch-train-cumulative": on_images(lambda: nn.BatchNorm2d(4, momentum=None)),
        "batch-no-statistics": on_images(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
        "batch-no-statistics-eval": on_images(lambda: nn.BatchNorm2d(4, track_running_stats=False).eval()),
        "batch-functional": on_rows(lambda: lambda x: F.batch_norm(x, None, None, training=True)),
        "hand-written-over-batch": on_rows(
            lambda: lambda x: (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        ),
    },
)
