"""Convolutions of every kind, above one more convolution and below a per-sample loss."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, add_ways, fit, net, param

SHAPES = {1: (4, 3, 9), 2: (4, 3, 7, 6), 3: (2, 3, 4, 5, 4)}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv(dims: int, o: int = 4, k: int | tuple[int, ...] = 3, **options: object) -> Callable[[], Tensor]:
    """Two layers: a pointwise convolution, then the one under test."""
    return lambda: net(
        CONV[dims](3, 4, 1),
        torch.tanh,
        CONV[dims](4, o, k, **options),
        shape=SHAPES[dims],  # type: ignore[arg-type]
    )


def transposed(dims: int, o: int = 4, k: int | tuple[int, ...] = 3, **options: object) -> Callable[[], Tensor]:
    return lambda: net(
        CONV[dims](3, 4, 1),
        torch.tanh,
        TRANSPOSED[dims](4, o, k, **options),
        shape=SHAPES[dims],  # type: ignore[arg-type]
    )


def channels_last() -> Tensor:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)).to(memory_format=torch.channels_last)
    return fit(model(torch.randn(4, 3, 7, 6).contiguous(memory_format=torch.channels_last)))


def unbatched() -> list[Tensor]:
    layer = nn.Conv2d(2, 3, 3)
    return [layer(torch.randn(2, 5, 5)).square().sum() for _ in range(3)]


def unbatched_pixels() -> Tensor:
    """Without a batch axis; one loss per output channel."""
    return nn.Conv2d(2, 4, 3)(nn.Conv2d(3, 2, 2)(torch.randn(3, 6, 6)).tanh()).square().sum((1, 2))


def batch_in_groups() -> Tensor:
    """Samples as groups of one convolution: each sample has its own filters."""
    filters, x = param(4 * 2, 3, 3, 3), torch.randn(4, 3, 5, 5)
    return fit(F.conv2d(x.view(1, 12, 5, 5), filters, groups=4).view(4, 2, 3, 3))


def filters_from_data() -> Tensor:
    """The filter is an activation and the input a parameter."""
    filters = nn.Linear(5, 2 * 3 * 3)(torch.randn(4, 5)).view(4, 2, 3, 3)
    return fit(F.conv2d(param(1, 2, 6, 6), filters).squeeze(0))


def called_directly() -> Tensor:
    """The operation below the functions of ``torch.nn``, with an overload of its own."""
    one, none = [1, 1], [0, 0]
    options = (False, none, 1, False, False, False, False)
    return fit(torch._convolution(torch.randn(4, 3, 5, 4), param(2, 3, 2, 2), param(2), one, none, one, *options))


def same_filter_twice() -> Tensor:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    return fit(layer(layer(torch.randn(4, 3, 5, 4)).tanh()))


def filter_both_ways() -> Tensor:
    """Encoder and decoder share a filter."""
    w, x = param(4, 3, 3, 3), torch.randn(3, 3, 6, 6)
    return fit(F.conv_transpose2d(F.conv2d(x, w).tanh(), w))


def two_resolutions() -> Tensor:
    layer, x = nn.Conv2d(3, 2, 3), torch.randn(4, 3, 8, 8)
    return fit(layer(x)) + fit(layer(F.avg_pool2d(x, 2)))


def standardised_weight() -> Tensor:
    w = param(4, 3, 3, 3)
    w_hat = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
    return fit(F.conv2d(torch.randn(3, 3, 5, 5), w_hat))


def as_linear() -> Tensor:
    """A strided convolution whose kernel is the whole image."""
    return net(nn.Conv2d(3, 5, (7, 6)), nn.Flatten(), nn.Linear(5, 2), shape=(4, 3, 7, 6))


def frozen_weight() -> Tensor:
    layer = nn.Conv2d(3, 4, 3)
    layer.weight.requires_grad_(False)
    return fit(nn.Conv2d(4, 2, 2)(layer(torch.randn(3, 3, 6, 6)).relu()))


def deformable() -> Tensor:
    """Unfold, weigh each patch by its own content, fold."""
    x = nn.Conv2d(3, 2, 1)(torch.randn(3, 3, 6, 6))
    patches = F.unfold(x, 3, stride=3)
    return fit(F.fold(patches * patches.softmax(1), (6, 6), 3, stride=3))


def batch_as_depth() -> Tensor:
    """A 3-D convolution over a stack whose depth is the batch: samples mix."""
    x = nn.Conv2d(3, 2, 1)(torch.randn(4, 3, 5, 5))
    return fit(nn.Conv3d(2, 2, 3, padding=1)(x.transpose(0, 1).unsqueeze(0)).squeeze(0), batch_dim=1)


def batch_as_length() -> Tensor:
    """A 1-D convolution along the batch: each loss sees its neighbours."""
    x = nn.Linear(5, 3)(torch.randn(6, 5)).tanh()
    return fit(nn.Conv1d(3, 2, 3, padding=1)(x.t().unsqueeze(0)).squeeze(0).t())


def batch_as_pointwise_length() -> Tensor:
    """Kernel one along the batch: samples do not mix after all."""
    x = nn.Linear(5, 3)(torch.randn(6, 5)).tanh()
    return fit(nn.Conv1d(3, 2, 1)(x.t().unsqueeze(0)).squeeze(0).t())


add(
    "conv",
    "sample",
    {
        "1d": conv(1),
        "1d-odd": conv(1, o=5, k=4, stride=2, padding=1),
        "1d-depthwise": conv(1, groups=4, padding=2),
        "1d-dilated": conv(1, k=2, dilation=4),
        "1d-causal": lambda: net(nn.Conv1d(3, 4, 1), lambda x: F.pad(x, (2, 0)), nn.Conv1d(4, 3, 3), shape=(4, 3, 8)),
        "1d-same": conv(1, k=5, padding="same"),
        "1d-grouped-circular": conv(1, groups=2, padding=2, padding_mode="circular"),
        "2d": conv(2),
        "2d-called-directly": called_directly,
        "2d-no-bias": conv(2, bias=False),
        "2d-pointwise": conv(2, k=1),
        "2d-pointwise-strided": conv(2, k=1, stride=2),
        "2d-rectangular": conv(2, k=(2, 5), stride=(2, 1), padding=(0, 2)),
        "2d-strided": conv(2, stride=2),
        "2d-strided-unused-border": conv(2, k=2, stride=4),
        "2d-padded": conv(2, padding=2),
        "2d-padded-wide": conv(2, k=2, padding=3, stride=3),
        "2d-same": conv(2, padding="same"),
        "2d-same-even": conv(2, k=(2, 4), padding="same", dilation=2),
        "2d-valid": conv(2, padding="valid"),
        "3d-valid": conv(3, k=2, padding="valid", bias=False),
        "2d-circular": conv(2, padding=1, padding_mode="circular"),
        "2d-reflect": conv(2, padding=(1, 2), padding_mode="reflect"),
        "2d-replicate": conv(2, padding=1, padding_mode="replicate"),
        "2d-dilated": conv(2, k=2, dilation=(3, 2)),
        "2d-grouped": conv(2, o=6, groups=2),
        "2d-grouped-pointwise": conv(2, o=2, k=1, groups=2),
        "2d-depthwise": conv(2, groups=4),
        "2d-depthwise-multiplier": conv(2, o=8, groups=4, padding=1, stride=2),
        "2d-patchify": conv(2, o=5, k=2, stride=2),
        "3d": conv(3, k=2),
        "3d-strided": conv(3, k=(1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)),
        "3d-depthwise": conv(3, k=2, groups=4),
        "transposed-1d": transposed(1, stride=2),
        "transposed-1d-grouped": transposed(1, groups=2, stride=3, output_padding=2),
        "transposed-2d": transposed(2, stride=2, padding=1, output_padding=1),
        "transposed-2d-plain": transposed(2, k=2, bias=False),
        "transposed-2d-dilated": transposed(2, k=2, dilation=2, padding=1),
        "transposed-2d-depthwise": transposed(2, groups=4, stride=2),
        "transposed-2d-grouped": transposed(2, o=6, groups=2, k=(2, 3), stride=(2, 1)),
        "transposed-3d": transposed(3, k=2, stride=2),
        "transposed-1d-longer-than-its-stride": transposed(1, dilation=3, stride=2, output_padding=2),
        "transposed-2d-pointwise-longer": transposed(2, k=1, dilation=2, output_padding=1),
        "channels-last": channels_last,
        "batch-one": lambda: net(nn.Conv2d(3, 4, 3), torch.tanh, nn.Conv2d(4, 2, 2), shape=(1, 3, 6, 6)),
        "all-sizes-equal": lambda: net(
            nn.Conv2d(3, 3, 3, padding=1), torch.tanh, nn.Conv2d(3, 3, 1), shape=(3, 3, 3, 3)
        ),
        "one-pixel": lambda: net(nn.Conv2d(3, 4, 1), torch.tanh, nn.Conv2d(4, 2, 1), shape=(4, 3, 1, 1)),
        "time-distributed": lambda: net(
            lambda x: x.flatten(0, 1),
            nn.Conv2d(3, 4, 2),
            torch.tanh,
            lambda x: x.view(3, 2, -1),
            nn.Linear(36, 2),
            shape=(3, 2, 3, 4, 4),
        ),
        "per-pixel-losses": lambda: nn.Conv2d(3, 1, 1)(torch.randn(2, 3, 2, 2)).square().squeeze(1),
        "same-filter-twice": same_filter_twice,
        "filter-both-ways": filter_both_ways,
        "two-resolutions": two_resolutions,
        "as-linear": as_linear,
        "frozen-weight": frozen_weight,
        "unfold-fold": deformable,
        "unfold-linear": lambda: net(
            nn.Conv2d(3, 2, 1),
            lambda x: F.unfold(x, (2, 3), padding=1, stride=2).mT,
            nn.Linear(12, 3),
            shape=(4, 3, 5, 6),
        ),
        "functional-input-parameter": lambda: fit(F.conv2d(param(4, 2, 5, 5), param(3, 2, 2, 2))),
    },
)

add(
    "conv",
    None,
    {
        "unbatched": unbatched,
        "unbatched-channels": unbatched_pixels,
        "filters-from-data": filters_from_data,
        "standardised-weight": standardised_weight,
        "batch-as-depth": batch_as_depth,
        "batch-as-length": batch_as_length,
        "batch-as-pointwise-length": batch_as_pointwise_length,
        "per-pixel-neighbours": lambda: nn.Conv2d(2, 1, 2)(nn.Conv2d(3, 2, 2)(torch.randn(2, 3, 4, 4)).relu()).squeeze(
            1
        ),
        "channel-losses": lambda: nn.Conv2d(3, 4, 2)(torch.randn(3, 3, 4, 4)).square().mean((0, 2, 3)),
    },
)

add(
    "conv",
    None,
    {
        "per-sample-filters": batch_in_groups,
    },
)


def forces(layer: nn.Module, *shape: int, hidden: bool = False) -> Callable[[], Tensor]:
    """Energies of a convolution differentiated by their input: the result is differentiated again."""

    def build() -> Tensor:
        x = nn.Linear(5, prod(shape))(torch.randn(4, 5)).view(4, *shape) if hidden else torch.randn(4, *shape) * param()
        (slope,) = torch.autograd.grad(nn.Sequential(layer, nn.Tanh())(x).square().sum(), x, create_graph=True)
        return slope + x.detach()

    return build


def by_weight() -> Tensor:
    """A step on the weight that is differentiated, as in meta-learning: all samples move it."""
    layer, x = nn.Conv1d(2, 3, 3), torch.randn(4, 2, 7)
    (slope,) = torch.autograd.grad(layer(x).square().mean(), layer.weight, create_graph=True)
    return F.conv1d(x, layer.weight - 0.1 * slope)


FORCES = {
    "1d": lambda: forces(nn.Conv1d(2, 3, 3), 2, 7)(),
    "2d": lambda: forces(nn.Conv2d(2, 3, 3, stride=2, padding=1), 2, 5, 6)(),
    "hidden": lambda: forces(nn.Conv2d(2, 3, (2, 3), padding=(0, 1)), 2, 4, 5, hidden=True)(),
    "grouped": lambda: forces(nn.Conv1d(4, 6, 3, groups=2, dilation=2), 4, 9)(),
    "transposed": lambda: forces(nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), 2, 5)(),
}
add_ways("conv-force", None, FORCES)
add("conv-force", "sample", {f"{name}-kept": lambda build=build: fit(build()) for name, build in FORCES.items()})
add("conv-force", None, {"by-weight": lambda: fit(by_weight())})
