"""Views, copies and rearrangements between two layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param

B, T, D = 4, 3, 6


def hidden(*shape: int) -> Tensor:
    """A hidden activation, [B, T, D] by default."""
    *lead, last = shape or (B, T, D)
    return nn.Linear(5, last)(torch.randn(*lead, 5)).tanh()


def through(f: Callable[[Tensor], Tensor], *shape: int, batch_dim: int = 0) -> Callable[[], Tensor]:
    """Layer, ``f``, layer on the last axis, loss along ``batch_dim`` of what ``f`` returned."""

    def build() -> Tensor:
        y = f(hidden(*shape))
        return fit(nn.Linear(y.shape[-1], 2)(y), batch_dim)

    return build


add(
    "shuffle",
    "sample",
    {
        "view": through(lambda x: x.view(B, 2, 9)),
        "view-flat": through(lambda x: x.view(B * T, D).tanh().view(B, T, D)),
        "view-flat-linear": through(lambda x: nn.Linear(D, 4)(x.view(-1, D)).view(B, -1)),
        "view-one-axis": through(lambda x: x.view(-1).square().view(B, -1)),
        "view-with-ones": through(lambda x: x.view(B, 1, T, 1, D)),
        "view-sixths": through(lambda x: x.view(2, 2, T, D).sum(2).view(B, D)),
        "view-batch-split": through(lambda x: nn.Linear(D, D)(x.view(2, 2, T, D)).reshape(B, T * D)),
        "reshape-after-transpose": through(lambda x: x.transpose(1, 2).reshape(B, -1)),
        "flatten-batch-second": through(
            lambda x: x.transpose(0, 1).reshape(T * B, D).tanh().view(T, B, D), batch_dim=1
        ),
        "batch-last": through(lambda x: x.permute(1, 2, 0).tanh().permute(2, 0, 1)),
        "batch-last-linear": through(
            lambda x: (nn.Linear(B, B, bias=False).weight.diagonal() * x.permute(1, 2, 0)).permute(2, 0, 1)
        ),
        "permute": through(lambda x: x.permute(0, 2, 1)),
        "swap-batch": through(lambda x: x.transpose(0, 1), batch_dim=1),
        "movedim": through(lambda x: x.movedim(0, -1).movedim(0, 1).movedim(-1, 0)),
        "move-into-middle": through(lambda x: x.view(B, 3, 3, 2).permute(1, 0, 3, 2).reshape(3, B, 6), batch_dim=1),
        "merge-with-middle": through(
            lambda x: x.transpose(0, 1).reshape(T * B * 2, 3).tanh().view(T, B, 2, 3), batch_dim=1
        ),
        "unsqueeze-squeeze": through(lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1)),
        "unsqueeze-squeeze-inplace": through(lambda x: (x * 2).unsqueeze_(1).sin().squeeze_()),
        "transpose-inplace": through(lambda x: (x[:, 0] * 2).t_().sin().t()),
        "scatter-number": through(lambda x: x.scatter(1, torch.randint(0, T, (B, 2, D)), 0.5)),
        "squeeze-all": through(lambda x: x.unsqueeze(1).squeeze()),
        "squeeze-batch-of-one": through(lambda x: x.squeeze(0).unsqueeze(0).tanh(), 1, 3, 4),
        "expand": through(lambda x: x.unsqueeze(1).expand(B, 2, T, D).tanh()),
        "expand-front": through(lambda x: x.expand(2, B, T, D), batch_dim=1),
        "expand-one": through(lambda x: x[:, :1].expand(-1, 4, -1) * torch.rand(B, 4, 1)),
        "repeat": through(lambda x: x.repeat(1, 2, 3)),
        "repeat-front": through(lambda x: x.repeat(2, 1, 1, 1), batch_dim=1),
        "repeat-interleave": through(lambda x: x.repeat_interleave(2, 1)),
        "repeat-interleave-uneven": through(lambda x: x.repeat_interleave(torch.tensor([2, 0, 1]), 1)),
        "tile": through(lambda x: x.tile(2, 1)),
        "cat-features": through(lambda x: torch.cat([x, x.sin(), torch.ones(B, T, 2)], -1)),
        "cat-positions": through(lambda x: torch.cat([x[:, 1:], x.tanh(), x], 1)),
        "cat-parameter": through(lambda x: torch.cat([x, param(1, 1, 2).expand(B, T, 2)], -1)),
        "stack": through(lambda x: torch.stack([x, x * 2], 1)),
        "stack-last": through(lambda x: torch.stack([x, x.exp()], -1)),
        "stack-front": through(lambda x: torch.stack([x, x.exp()]), batch_dim=1),
        "hstack": through(lambda x: torch.hstack([x, x.exp()])),
        "dstack": through(lambda x: torch.dstack([x, x.exp()])),
        "column-stack": through(lambda x: torch.column_stack([x[:, 0], x[:, 1, 0]])),
        "split": through(lambda x: x.split([1, 2, 3], -1)[2] * x.split([1, 2, 3], -1)[0]),
        "unsafe-split": through(lambda x: torch.mul(*torch.unsafe_split_with_sizes(x, [3, 3], -1))),
        "split-unused": through(lambda x: x.split(2, -1)[1]),
        "split-positions": through(lambda x: x.split([1, 2], 1)[1]),
        "chunk": through(lambda x: torch.mul(*x.chunk(2, -1))),
        "tensor-split": through(lambda x: torch.cat(x.tensor_split(3, -1)[::-1], -1)),
        "unbind": through(lambda x: sum((k + 1) * t for k, t in enumerate(x.unbind(1)))),  # type: ignore[arg-type, misc]
        "unbind-stack": through(lambda x: torch.stack(x.unbind(2)[::-1], 2)),
        "select": through(lambda x: x[:, 1]),
        "select-negative": through(lambda x: x[:, -1] * x[:, 0]),
        "select-feature": through(lambda x: x[..., 2]),
        "slice": through(lambda x: x[:, 1:, ::2]),
        "slice-batch": through(lambda x: x[1:3]),
        "slice-batch-step": through(lambda x: x[::3]),
        "narrow": through(lambda x: x.narrow(2, 1, 3)),
        "unfold": through(lambda x: x.unfold(2, 3, 2)),
        "unfold-positions": through(lambda x: x.unfold(1, 2, 1).flatten(2)),
        "as-strided-inplace": through(lambda x: (x * 2).as_strided_((B, 4), (T * D, 3), 1)),
        "as-strided": through(lambda x: x.as_strided((B, 4), (T * D, 3), 1)),
        "diagonal": through(lambda x: x.diagonal(dim1=1, dim2=2)),
        "diagonal-offset": through(lambda x: x.diagonal(1, 1, 2)),
        "diag-embed": through(lambda x: x[:, 0].diag_embed(1)),
        "tril": through(lambda x: x.tril(1)),
        "triu": through(lambda x: x.triu()),
        "block-diag-of-two": through(lambda x: torch.cat([F.pad(x, (0, 2)), F.pad(x[..., :2], (6, 0))], 1)),
        "pad": through(lambda x: F.pad(x, (1, 2, 0, 1))),
        "pad-crop": through(lambda x: F.pad(x, (-1, 2, -1, 0))),
        "pad-reflect": through(lambda x: F.pad(x, (2, 1), mode="reflect")),
        "flip": through(lambda x: x.flip(2)),
        "flip-batch": through(lambda x: x.flip(0)),
        "roll-batch": through(lambda x: x.roll(1, 0)),
        "roll-features": through(lambda x: x.roll(2, -1)),
        "kron": through(lambda x: torch.kron(x[0:1], torch.rand(1, 2, 1)), 1, 3, 4),
        "outer": through(lambda x: torch.einsum("bti,btj->btij", x, x)),
        "meshgrid": through(lambda x: torch.stack([torch.stack(torch.meshgrid(r[0], r[1], indexing="ij")) for r in x])),
        "cartesian": through(lambda x: (x.unsqueeze(2) - x.unsqueeze(1)).flatten(1)),
        "contiguous": through(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)),
        "clone": through(lambda x: x.clone() + x.view_as(x)),
        "to-dtype": through(lambda x: x.to(torch.float64).to(x.dtype)),
        "channels-last": through(lambda x: x.contiguous(memory_format=torch.channels_last), B, 2, 3, 4),
        "pixel-patches": through(lambda x: x.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3), B, 4, 4, 3),
        "einops-like": through(lambda x: x.view(B, 2, 2, 3).permute(0, 3, 1, 2).flatten(2), B, 2, 6),
        "all-sizes-equal": through(lambda x: x.transpose(1, 2).tanh().transpose(0, 1), 3, 3, 3, batch_dim=1),
        "all-sizes-equal-flat": through(
            lambda x: x.permute(1, 0, 2).reshape(9, 3).tanh().view(3, 3, 3), 3, 3, 3, batch_dim=1
        ),
        "all-sizes-two": through(lambda x: x.permute(2, 0, 1).reshape(2, 4).tanh().view(2, 2, 2), 2, 2, 2, batch_dim=1),
        "broadcast-tensors": through(lambda x: torch.mul(*torch.broadcast_tensors(x, param(T, 1)))),
        "add-per-sample": through(lambda x: x + hidden(B, 1, D)),
        "add-per-position": through(lambda x: x * hidden(B, D).unsqueeze(1)),
        "add-missing-axes": through(lambda x: x.transpose(0, 1) + hidden(B, D), batch_dim=1),
        "rsub-rdiv": through(lambda x: (1 - x) * (2 / (x + 3))),
        "add-alpha": through(lambda x: torch.add(x, x.exp(), alpha=-0.3)),
        "true-divide": through(lambda x: x / (1 + x.exp().sum(-1, keepdim=True))),
    },
)

add(
    "shuffle",
    None,
    {
        "fill-by-parameter": through(lambda x: x.index_fill(1, torch.tensor([0, 2]), param())),
        "batch-into-features": through(lambda x: x.permute(1, 2, 0), batch_dim=1),
        "outer-sum": through(lambda x: (x[:, None] * x[None]).sum(1)),
        "expand-from-one-sample": through(lambda x: x[:1].expand(B, T, D) * torch.rand(B, 1, 1)),
        "samples-from-tokens": through(lambda x: x.view(2, 6, D)),
        "samples-interleaved": through(lambda x: x.view(2, 2, T, D).transpose(0, 1).reshape(B, T, D)),
        "samples-interleaved-flat": through(lambda x: x.view(2, 2, T * D).transpose(0, 1).flatten(1)),
        "batch-view-crooked": through(lambda x: x.reshape(6, 2, D)),
        "block-diag": through(lambda x: torch.block_diag(*x)[::T]),
        "cat-batch": through(lambda x: torch.cat([x, x.exp()])),
        "cat-batch-crossed": through(lambda x: torch.cat([x[2:], x[:1].exp()])),
        "stack-samples": through(lambda x: torch.stack([x[2], x[0] * x[1]])),
        "repeat-batch": through(lambda x: x.repeat(2, 1, 1)),
        "tile-batch": through(lambda x: x.repeat_interleave(2, 0)),
        "vstack": through(lambda x: torch.vstack([x[:2], x[1:3].sin()])),
    },
)
