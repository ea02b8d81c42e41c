"""Pooling, resampling and whole blocks of vision networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, net, param

IMAGE = (4, 3, 8, 6)


def above_conv(*layers: Callable[[Tensor], Tensor], o: int = 3) -> Callable[[], Tensor]:
    """A convolution, the layers under test, a pooled linear head."""
    return lambda: net(
        nn.Conv2d(3, 4, 3, padding=1), *layers, lambda x: x.flatten(2).mean(2), nn.Linear(4, o), shape=IMAGE
    )


def above_conv3d(layer: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: net(nn.Conv3d(2, 3, 1), layer, nn.Flatten(), nn.LazyLinear(2), shape=(3, 2, 4, 3, 4))


def above_conv1d(*layers: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: net(nn.Conv1d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(2), shape=(4, 3, 11))


def residual_block(norm: Callable[[], nn.Module], shortcut: bool = False) -> Tensor:
    stem, a, b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
    side = nn.Conv2d(4, 4, 1) if shortcut else nn.Identity()
    x = stem(torch.randn(*IMAGE))
    y = F.relu(norm()(a(x)))
    return fit(nn.Linear(4, 3)(F.relu(norm()(b(y)) + side(x)).mean((2, 3))))


def convnext_block() -> Tensor:
    stem, depthwise, norm = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
    up, down, scale = nn.Linear(4, 8), nn.Linear(8, 4), param(4)
    x = stem(torch.randn(*IMAGE))
    y = norm(depthwise(x).permute(0, 2, 3, 1))
    return fit(x + (scale * down(F.gelu(up(y)))).permute(0, 3, 1, 2))


def u_net() -> Tensor:
    down1, down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
    up, out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 2, 3, padding=1)
    a = down1(torch.randn(3, 3, 6, 6)).relu()
    b = down2(F.max_pool2d(a, 2)).relu()
    return fit(out(torch.cat([a, up(b)], 1)))


def squeeze_excite() -> Tensor:
    stem, gate, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)
    x = stem(torch.randn(*IMAGE))
    return fit(head((x * gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).amax((2, 3))))


def vision_transformer() -> Tensor:
    patch, token, table = nn.Conv2d(3, 8, 2, stride=2), param(1, 1, 8), param(1, 10, 8)
    x = patch(torch.randn(3, 3, 6, 6)).flatten(2).transpose(1, 2)
    x = torch.cat([token.expand(3, -1, -1), x], 1) + table
    block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True, norm_first=True)
    return fit(nn.Linear(8, 3)(block(x)[:, 0]))


def patches_by_view() -> Tensor:
    x = torch.randn(3, 3, 4, 6).view(3, 3, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(3, 6, 12)
    return fit(nn.Linear(4, 2)((nn.Linear(12, 4)(x) + param(6, 4)).tanh()))


def mixer() -> Tensor:
    """Linear over channels, then linear over positions."""
    channel, token = nn.Linear(4, 4), nn.Linear(6, 6)
    x = nn.LayerNorm(4)(torch.randn(3, 6, 4))
    x = x + channel(x).relu()
    return fit(x + token(x.transpose(1, 2)).relu().transpose(1, 2))


def spatial_transformer() -> Tensor:
    x = torch.randn(3, 2, 5, 5)
    theta = nn.Linear(50, 6)(x.flatten(1)).view(3, 2, 3) * 0.1 + torch.eye(2, 3)
    grid = F.affine_grid(theta, [3, 2, 5, 5], align_corners=False)
    return fit(F.grid_sample(nn.Conv2d(2, 2, 1)(x), grid, align_corners=False))


def grid_sampled(mode: str, padding: str) -> Callable[[], Tensor]:
    def build() -> Tensor:
        x, grid = nn.Conv2d(3, 2, 3)(torch.randn(*IMAGE)), torch.rand(4, 3, 4, 2) * 2.4 - 1.2
        return fit(F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=True))

    return build


def grid_sampled_3d() -> Tensor:
    x, grid = nn.Conv3d(2, 3, 2)(torch.randn(2, 2, 4, 4, 4)), torch.rand(2, 3, 2, 3, 3) * 2.4 - 1.2
    return fit(F.grid_sample(x, grid, align_corners=False))


def capsules() -> Tensor:
    x = nn.Conv2d(3, 4, 3, stride=2)(torch.randn(3, 3, 7, 7)).view(3, 2, 2, 9)
    length = x.norm(dim=2, keepdim=True)
    squashed = x * length / (1 + length**2)
    votes = torch.einsum("bcdp,cdko->bpko", squashed, param(2, 2, 3, 2))
    return fit((votes * votes.sum(-1, keepdim=True).softmax(2)).sum(1))


def coordinates() -> Tensor:
    """CoordConv: a constant grid, expanded over the batch, beside the image."""
    x = torch.randn(3, 3, 5, 4)
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 5), torch.linspace(0, 1, 4), indexing="ij"))
    return fit(nn.Conv2d(5, 2, 2)(torch.cat([x, grid.expand(3, -1, -1, -1)], 1)))


add(
    "vision",
    "sample",
    {
        "max-pool": above_conv(nn.MaxPool2d(2)),
        "max-pool-overlapping": above_conv(nn.MaxPool2d(3, stride=1, padding=1)),
        "max-pool-dilated": above_conv(nn.MaxPool2d(2, dilation=2, ceil_mode=True)),
        "max-pool-1d": above_conv1d(nn.MaxPool1d(3)),
        "max-pool-1d-functional": above_conv1d(lambda x: F.max_pool1d(x, 2, return_indices=True)[0]),
        "max-pool-3d": lambda: net(nn.Conv3d(2, 3, 1), nn.MaxPool3d(2), shape=(3, 2, 4, 4, 2)),
        "max-unpool": above_conv(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
        "avg-pool": above_conv(nn.AvgPool2d(2)),
        "avg-pool-padded": above_conv(nn.AvgPool2d(3, padding=1, count_include_pad=False)),
        "avg-pool-1d": above_conv1d(nn.AvgPool1d(2)),
        "avg-pool-3d": lambda: net(nn.Conv3d(2, 3, 1), nn.AvgPool3d(2), shape=(3, 2, 4, 4, 2)),
        "adaptive-avg": above_conv(nn.AdaptiveAvgPool2d((3, 2))),
        "adaptive-avg-one": above_conv(nn.AdaptiveAvgPool2d(1)),
        "adaptive-avg-1d": above_conv1d(nn.AdaptiveAvgPool1d(4)),
        "adaptive-avg-3d": above_conv3d(nn.AdaptiveAvgPool3d(2)),
        "adaptive-max-3d": above_conv3d(nn.AdaptiveMaxPool3d(2)),
        "adaptive-max": above_conv(nn.AdaptiveMaxPool2d((3, 2))),
        "adaptive-max-1d": above_conv1d(nn.AdaptiveMaxPool1d(4)),
        "lp-pool": above_conv(nn.LPPool2d(2, 2)),
        "fractional-pool": above_conv(nn.FractionalMaxPool2d(2, output_size=(3, 3))),
        "fractional-pool-3d": above_conv3d(nn.FractionalMaxPool3d((2, 1, 2), output_size=2)),
        "upsample-nearest": above_conv(nn.Upsample(scale_factor=2, mode="nearest")),
        "upsample-exact": above_conv(nn.Upsample(size=(9, 11), mode="nearest-exact")),
        "upsample-bilinear": above_conv(nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=False)),
        "upsample-corners": above_conv(nn.Upsample(size=(5, 9), mode="bilinear", align_corners=True)),
        "upsample-bicubic": above_conv(nn.Upsample(scale_factor=2, mode="bicubic")),
        "upsample-linear": above_conv1d(nn.Upsample(scale_factor=2, mode="linear")),
        "downsample-antialias": above_conv(lambda x: F.interpolate(x, (4, 3), mode="bilinear", antialias=True)),
        "downsample-antialias-bicubic": above_conv(lambda x: F.interpolate(x, (4, 3), mode="bicubic", antialias=True)),
        "upsample-nearest-1d": above_conv1d(nn.Upsample(size=13, mode="nearest")),
        "upsample-nearest-3d": above_conv3d(nn.Upsample(size=5, mode="nearest")),
        "upsample-exact-1d": above_conv1d(nn.Upsample(size=13, mode="nearest-exact")),
        "upsample-exact-3d": above_conv3d(nn.Upsample(size=5, mode="nearest-exact")),
        "upsample-area": above_conv(lambda x: F.interpolate(x, (4, 3), mode="area")),
        "upsample-trilinear": lambda: net(
            nn.Conv3d(2, 2, 1), nn.Upsample(scale_factor=2, mode="trilinear"), shape=(2, 2, 2, 3, 2)
        ),
        "pixel-shuffle": above_conv(lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1)),
        "pixel-unshuffle": above_conv(lambda x: F.pixel_unshuffle(x, 2)[:, 3:7]),
        "channel-shuffle": above_conv(nn.ChannelShuffle(2)),
        "dropout2d": above_conv(nn.Dropout2d(0.3)),
        "feature-alpha-dropout": above_conv(nn.FeatureAlphaDropout(0.3)),
        "zero-pad": above_conv(nn.ZeroPad2d((1, 0, 2, 1))),
        "negative-pad": above_conv(nn.ZeroPad2d((-1, 2, -2, 0))),
        "constant-pad": above_conv(nn.ConstantPad2d(1, 0.5)),
        "reflection-pad": above_conv(nn.ReflectionPad2d((2, 1, 0, 3))),
        "replication-pad": above_conv(nn.ReplicationPad2d(1)),
        "reflection-pad-3d": above_conv3d(nn.ReflectionPad3d((1, 2, 0, 1, 1, 0))),
        "replication-pad-1d": above_conv1d(nn.ReplicationPad1d((2, 1))),
        "replication-pad-3d": above_conv3d(nn.ReplicationPad3d((1, 0, 2, 1, 0, 1))),
        "circular-pad": above_conv(nn.CircularPad2d((1, 2, 2, 1))),
        "residual-group-norm": lambda: residual_block(lambda: nn.GroupNorm(2, 4), shortcut=True),
        "residual-plain": lambda: residual_block(nn.Identity),
        "residual-eval-batch-norm": lambda: residual_block(lambda: nn.BatchNorm2d(4).eval()),
        "convnext-block": convnext_block,
        "u-net": u_net,
        "squeeze-excite": squeeze_excite,
        "vision-transformer": vision_transformer,
        "patches-by-view": patches_by_view,
        "mixer": mixer,
        "spatial-transformer": spatial_transformer,
        "grid-bilinear": grid_sampled("bilinear", "zeros"),
        "grid-nearest": grid_sampled("nearest", "border"),
        "grid-3d": grid_sampled_3d,
        "grid-bicubic": grid_sampled("bicubic", "reflection"),
        "capsules": capsules,
        "coordinates": coordinates,
        "flatten-head": lambda: net(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3), shape=IMAGE),
        "global-max": lambda: net(
            nn.Conv2d(3, 4, 3), lambda x: x.flatten(2).max(2).values, nn.Linear(4, 2), shape=IMAGE
        ),
    },
)

add("vision", "dense", {"residual-batch-norm": lambda: residual_block(lambda: nn.BatchNorm2d(4), shortcut=True)})
