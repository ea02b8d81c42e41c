"""The models of the benchmark cases, but for the network of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def mlp(widths: Sequence[int] = (784, 1024, 1024, 10)) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def vgg() -> nn.Sequential:
    """Three stages of two padded 3x3 convolutions, 32 to 128 channels, and two linear layers."""
    layers: list[nn.Module] = []
    for i, o in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10))


class PooledEncoder(nn.Module):
    """`nn.TransformerEncoder`, batch first, mean over positions, ten classes. `[b, T, d] -> [b, 10]`."""

    def __init__(self, layers: int, width: int) -> None:
        """No dropout: TorchJD's engine runs each layer twice and would draw two masks."""
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, nhead=8, dim_feedforward=4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, T, d] -> [b, 10]`."""
        return self.head(self.encoder(x).mean(1))


class MultiTask(nn.Module):
    """A trunk 784-1024-1024 and a linear head of ten classes for each task."""

    def __init__(self, tasks: int) -> None:
        """Make the trunk and `tasks` heads."""
        super().__init__()
        self.trunk = nn.Sequential(mlp((784, 1024, 1024)), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(1024, 10) for _ in range(tasks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """`[b, 784]` to one `[b, 10]` per task."""
        features = self.trunk(x)
        return [head(features) for head in self.heads]


class Block(nn.Module):
    """A pre-norm transformer block as in GPT-2: causal attention, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`[b, T, d] -> [b, T, d]`."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """GPT-2 in small: learned positions, the token table tied to the head. `[b, T] -> [b, T, vocabulary]`."""

    def __init__(self, vocabulary: int, length: int, layers: int, width: int) -> None:
        """Initialise as GPT-2 does, normal with deviation 0.02."""
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads=width // 64) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.norm(self.blocks(self.tokens(tokens) + self.positions(places))) @ self.tokens.weight.T
