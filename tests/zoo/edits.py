"""Edits in place of parts of activations, in every way that programs write them, and strided views."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from tests.zoo.registry import add, add_ways, fit, param

B, T, D = 4, 3, 6
Edit = Callable[[Tensor, Tensor], object]


def edited(edit: Edit, batch: int = 0) -> Callable[[], Tensor]:
    """An activation, [B, T, D] or [T, B, D], edited with the help of another one, [B, D]; a layer follows."""

    def build() -> Tensor:
        shape = (B, T, 5) if batch == 0 else (T, B, 5)
        x, y = nn.Linear(5, D)(torch.randn(shape)).clone(), nn.Linear(5, D)(torch.randn(B, 5)).tanh()
        edit(x, y)
        return nn.Linear(D, 3)(x).movedim(batch, 0)

    return build


def assign(x: Tensor, y: Tensor) -> None:
    x[:, 0] = y


def assign_other_dtype(x: Tensor, y: Tensor) -> None:
    x[:, 0] = y.to(torch.float32 if y.dtype == torch.float64 else torch.float64)


def assign_whole(x: Tensor, y: Tensor) -> None:
    x[:] = y[:, None] * 2


def assign_strided(x: Tensor, y: Tensor) -> None:
    x[:, ::2, 1:3] = y[:, None, :2] * 2


def assign_in_turn(x: Tensor, y: Tensor) -> None:
    """A part that was written is written again, and is read in between."""
    x[:, 1] = x[:, 2].clone() * y
    x[:, 1:, ::2] = x[:, :2, 1::2].clone()


def assign_list(x: Tensor, y: Tensor) -> None:
    x[:, [0, 2]] = y[:, None]


def assign_list_in_part(x: Tensor, y: Tensor) -> None:
    x[:, 0][:, [0, 2]] = y[:, :2]


def assign_position(x: Tensor, y: Tensor) -> None:
    x[1] = y


def assign_position_feature(x: Tensor, y: Tensor) -> None:
    x[1:, :, 2:4] = y[:, 1:3]


def scale_samples(x: Tensor, y: Tensor) -> None:
    """Part of the batch."""
    x[1:3] *= 2
    x[0, 0].tanh_()


EDITS: dict[str, Edit] = {
    "assign": assign,
    "assign-whole": assign_whole,
    "assign-strided": assign_strided,
    "assign-in-turn": assign_in_turn,
    "assign-list": assign_list,
    "scale": lambda x, y: x[:, 0].mul_(2),
    "scale-by-part": lambda x, y: x[:, 0, 2:].mul_(y[:, 2:]),
    "scale-by-one": lambda x, y: x[:, 1:].mul_(y[:, None, :1]),
    "scale-flat": lambda x, y: x.view(B, -1)[:, :D].mul_(y),
    "scale-every-second": lambda x, y: x.view(-1)[::2].mul_(2),
    "divide": lambda x, y: x[:, 1].div_(y + 3),
    "subtract": lambda x, y: x[:, 1].sub_(y),
    "tanh": lambda x, y: x[:, 0].tanh_(),
    "exp": lambda x, y: x[:, :2, 3:].exp_(),
    "elu": lambda x, y: F.elu_(x[:, 1:]),
    "clamp": lambda x, y: x[..., 2:].clamp_(-0.5, 0.5),
    "fill": lambda x, y: x[:, 1].fill_(0.3),
    "masked-fill": lambda x, y: x[:, 1].masked_fill_(y > 0, 0.2),
    "index-fill": lambda x, y: x[:, 1:].index_fill_(2, torch.tensor([0, 3]), 0.1),
    "addcmul": lambda x, y: x[:, 0].addcmul_(y, y.tanh(), value=0.5),
    "lerp": lambda x, y: x[:, 0].lerp_(y, 0.3),
    "copy": lambda x, y: x.copy_(y[:, None].expand(B, T, D) * 2),
    "diagonal": lambda x, y: x.diagonal(0, 1, 2).copy_(y[:, :3]),
    "transposed": lambda x, y: x.transpose(0, 1)[0].copy_(y),
}
add_ways("edit", "sample", {name: edited(edit) for name, edit in EDITS.items()})
SECOND = {
    "assign": assign_position,
    "assign-features": assign_position_feature,
    "scale": lambda x, y: x[1].mul_(y),
    "sigmoid": lambda x, y: x[::2].sigmoid_(),
}
add_ways("edit-second", "sample", {name: edited(edit, batch=1) for name, edit in SECOND.items()})
add("edit", None, {"other-dtype": lambda: fit(edited(assign_other_dtype)())}, tol=1e-5)
add("edit", None, {"samples": lambda: fit(edited(scale_samples)())})
add("edit", None, {"list-in-part": lambda: fit(edited(assign_list_in_part)())})
add("edit", "dense", {"product": lambda: fit(edited(lambda x, y: x[:, 0].addmm_(y, y.t() @ y))())})


def rows_apart(edit: Edit) -> Callable[[], list[Tensor]]:
    """Rows of two losses that lie beside each other in memory arrive at the edit."""

    def build() -> list[Tensor]:
        out = edited(edit)().repeat(1, 1, 2)
        return list((out - 0.3).square().mean((0, 1)))

    return build


add(
    "edit", None, {f"rows-beside-{n}": rows_apart(EDITS[n]) for n in ("assign", "scale-by-part", "addcmul", "subtract")}
)


def low(edit: Edit) -> Callable[[], Tensor]:
    """Edits of bfloat16 activations."""

    def build() -> Tensor:
        first, last = nn.Linear(5, D).bfloat16(), nn.Linear(D, 3).bfloat16()
        x, y = first(torch.randn(B, T, 5).bfloat16()).clone(), first(torch.randn(B, 5).bfloat16())
        edit(x, y)
        return fit(last(x))

    return build


add(
    "edit-bfloat16",
    "sample",
    {name: low(EDITS[name]) for name in ("assign", "assign-strided", "scale-by-part", "tanh")},
    dtypes=(torch.float32,),
    tol=3e-2,
)


def of_transposed(edit: Edit) -> Callable[[], Tensor]:
    """The base itself is no row-major tensor: [B, T, D] in the memory of [D, T, B]."""

    def build() -> Tensor:
        x = nn.Linear(5, B)(torch.randn(D, T, 5)).clone().transpose(0, 2)
        base = x.clone(memory_format=torch.preserve_format)
        edit(base, nn.Linear(5, D)(torch.randn(B, 5)))
        return base

    return build


add_ways(
    "edit-transposed",
    None,
    {name: of_transposed(EDITS[name]) for name in ("assign", "assign-strided", "tanh", "scale-by-part")},
)


def buffer(shape: tuple[int, ...], dim: int) -> Callable[[], Tensor]:
    """States of a recurrence collected in a tensor that was made before."""

    def build() -> Tensor:
        step, out, h = nn.RNNCell(5, D), torch.zeros(shape), torch.zeros(B, D)
        for t in range(T):
            h = step(torch.randn(B, 5), h)
            out.select(dim, t).copy_(h)
        return out.movedim(1 - dim, 0)

    return build


add_ways("edit-buffer", "sample", {"batch-first": buffer((B, T, D), 1), "batch-second": buffer((T, B, D), 0)})


def packed(cell: type[nn.RNNBase], **options: bool) -> Callable[[], Tensor]:
    """Sequences of different lengths, packed and padded again."""

    def build() -> Tensor:
        x = nn.Linear(5, 5)(torch.randn(B, 4, 5))
        rows = pack_padded_sequence(x, torch.tensor([4, 3, 2, 1]), batch_first=True)
        out, _ = cell(5, D, batch_first=True, **options)(rows)  # type: ignore[arg-type]
        return pad_packed_sequence(out, batch_first=True)[0]

    return build


add_ways("edit-packed", None, {"gru": packed(nn.GRU), "lstm-both-ways": packed(nn.LSTM, bidirectional=True)})
add("edit-packed", "sample", {"rnn": lambda: fit(packed(nn.RNN)())})
add_ways("edit", "sample", {"circular": lambda: nn.Conv1d(T, 4, 3, padding=1, padding_mode="circular")(hidden())})


def checkpointed() -> Tensor:
    """What the operation saved is computed anew when the node is looked at."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0].mul_(y.tanh())
        x[:, 1:] = (x[:, :2] * y[:, None]).sin()
        return x

    return checkpoint(run, hidden(), nn.Linear(5, D)(torch.randn(B, 5)), use_reentrant=False)


add_ways("edit", "sample", {"checkpoint": checkpointed})


# -- strided views ----------------------------------------------------------------------------------------------------


def hidden(*shape: int) -> Tensor:
    return nn.Linear(5, D)(torch.randn(*(shape or (B, T)), 5))


def windows(x: Tensor) -> Tensor:
    """Windows [3, 4] of positions that overlap, of [b, 8, D]."""
    b, t, d = x.stride()
    return nn.Linear(D, 2)(x.as_strided((len(x), 3, 4, D), (b, 2 * t, t, d)))


def windows_second() -> Tensor:
    """The same with the batch second, [8, B, D]."""
    x = hidden(8, B)
    t, b, d = x.stride()
    return x.as_strided((3, 4, B, D), (2 * t, t, b, d)).movedim(2, 0)


def spectrum() -> Tensor:
    x = nn.Linear(5, 18)(torch.randn(B, 5))
    return torch.stft(x, 8, 4, window=torch.hann_window(8), return_complex=True).abs()


def resynthesised() -> Tensor:
    """A spectrum under a mask, as a signal again."""
    window = torch.hann_window(8)
    spectrum = torch.stft(torch.randn(B, 32), 8, 4, window=window, return_complex=True)
    mask = nn.Linear(5, 45)(torch.randn(B, 5)).view(B, 5, 9)
    return torch.istft(spectrum * mask, 8, 4, window=window)


def unfolded_twice() -> Tensor:
    """The derivative of windows, differentiated again."""
    x = hidden(B, 8)
    (slope,) = torch.autograd.grad(x.unfold(1, 3, 1).pow(3).sum(), x, create_graph=True)
    return slope


add_ways(
    "strided",
    "sample",
    {
        "windows": lambda: windows(hidden(B, 8)),
        "windows-second": windows_second,
        "same": lambda: hidden(B, 8).as_strided((B, 8, D), (8 * D, D, 1)).tanh(),
        "part": lambda: hidden(B, 8).as_strided((B, 2, 3), (8 * D, 3 * D, 2), 7).tanh(),
        "repeated": lambda: hidden(B, 8).as_strided((B, 5, 8, D), (8 * D, 0, D, 1)) * torch.randn(5, 8, D),
        "of-transposed": lambda: hidden(8, B).transpose(0, 1).as_strided((B, 2, D), (D, 3 * B * D, 1)).tanh(),
        "spectrum": spectrum,
        "resynthesised": resynthesised,
        "unfolded-twice": unfolded_twice,
        "scattered": lambda: torch.as_strided_scatter(hidden(), hidden()[:, :2, :3] * 2, (B, 2, 3), (T * D, D, 2), 1),
    },
)
add(
    "strided",
    None,
    {
        "windows-of-samples": lambda: fit(hidden(B).as_strided((3, 2, D), (D, D, 1))),
        "flat-windows": lambda: fit(hidden(B).as_strided((5, 8), (4, 1))),
        "beyond": lambda: fit(hidden(B)[:2].as_strided((4, D), (D, 1)).tanh()),
        "of-expanded": lambda: fit(hidden(B)[:, None].expand(B, 2, D).as_strided((B, 2, D), (D, 0, 1)).sin()),
        "flat-scattered": lambda: fit(torch.as_strided_scatter(hidden(B), param(4) * 2, (4,), (7,), 1)),
    },
)
