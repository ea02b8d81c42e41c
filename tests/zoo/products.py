"""Odd ways to multiply an activation by a parameter, and functions of parameters."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.mlp import B, I, O, data, mlp
from tests.zoo.registry import add, fit, param


def by(f: Callable[[Tensor, Tensor], Tensor], *shape: int) -> Callable[[], Tensor]:
    """Map a hidden activation [B, I] and a weight ([I, O] by default) with ``f``, above a layer and below a loss."""
    return lambda: fit(f(nn.Linear(4, I)(data(B, 4)).tanh(), param(*(shape or (I, O)))))


add(
    "product",
    "sample",
    {
        "matmul": by(lambda x, w: x @ w),
        "mm": by(torch.mm),
        "weight-first": by(lambda x, w: (w.t() @ x.t()).t()),
        "weight-first-plain": by(lambda x, w: (w @ x.t()).t(), O, I),
        "weight-first-column": by(lambda x, w: (w @ x.view(B, I, 1)).squeeze(2), O, I),
        "weight-first-positions": lambda: fit(param(O, I) @ nn.Linear(4, 2)(data(B, I, 4))),
        "addmm": by(lambda x, w: torch.addmm(param(O), x, w, beta=0.3, alpha=-1.7)),
        "addmm-activation": by(lambda x, w: torch.addmm(x[:, :O], x, w, beta=-2.0)),
        "addmm-column": by(lambda x, w: torch.addmm(param(B, 1), x, w)),
        "addmm-transposed": by(lambda x, w: torch.addmm(param(O, 1), w, x.t()).t(), O, I),
        "mv": by(lambda x, w: torch.mv(x, w).unsqueeze(1), I),
        "addmv": by(lambda x, w: torch.addmv(param(1), x, w, alpha=0.5).unsqueeze(1), I),
        "matrix-vector-positions": by(lambda x, w: x.view(B, 2, 3) @ w, 3),
        "vector-matrix": by(lambda x, w: (w @ x.t()).unsqueeze(1), I),
        "bmm-expanded": by(lambda x, w: torch.bmm(x.view(B, 1, I), w.expand(B, I, O)).squeeze(1)),
        "baddbmm": by(lambda x, w: torch.baddbmm(param(1, O), x.view(B, 1, I), w.expand(B, I, O), beta=0.5, alpha=2.0)),
        "outer-einsum": by(lambda x, w: torch.einsum("bi,o->bio", x, w), O),
        "einsum": by(lambda x, w: torch.einsum("bi,io->bo", x, w)),
        "einsum-transposed": by(lambda x, w: torch.einsum("io,bi->ob", w, x).t()),
        "einsum-three": by(lambda x, w: torch.einsum("bi,io,bj->boj", x, w, x)),
        "einsum-diagonal": by(lambda x, w: torch.einsum("bi,ii->bi", x, w), I, I),
        "einsum-trace": by(lambda x, w: torch.einsum("bi,ji,ki->bjk", x, w, w), O, I),
        "einsum-batch-last": lambda: fit(torch.einsum("ijb,jo->oib", data(2, I, B), param(I, O)), batch_dim=2),
        "einsum-ellipsis": lambda: fit(torch.einsum("...i,...io->...o", data(B, 3, I), param(3, I, O))),
        "tensordot": by(lambda x, w: torch.tensordot(x.view(B, 2, 3), w, dims=2), 2, 3, O),
        "tensordot-crossed": by(lambda x, w: torch.tensordot(w, x.view(B, 2, 3), dims=([0, 2], [2, 1])).t(), 3, O, 2),
        "inner": by(torch.inner, O, I),
        "matrix-per-position": lambda: fit(torch.einsum("bti,tio->bto", data(B, 3, I), param(3, I, O))),
        "weights-per-sample": lambda: fit(torch.bmm(data(B, 2, I), param(B, I, O))),
        "matmul-broadcast": lambda: fit(data(B, 1, 2, I) @ param(3, I, O)),
        "matmul-broadcast-both": lambda: fit(data(B, 1, 2, I) @ param(2, 1, I, O).expand(2, 3, I, O)[:1]),
        "gram-of-sample": by(lambda x, w: (x.view(B, 2, 3) @ x.view(B, 2, 3).mT) * w, 1),
        "block-diagonal": by(lambda x, w: torch.einsum("bgi,gio->bgo", x.view(B, 2, 3), w), 2, 3, 4),
        "toeplitz-sum": by(lambda x, w: sum(x.roll(k, 1) * w[k] for k in range(3)), 3),  # type: ignore[misc]
        "twice": by(lambda x, w: (x @ w).tanh() @ w, I, I),
        "twice-transposed": by(lambda x, w: (x @ w).tanh() @ w.t(), I, I),
        "twice-linear": by(lambda x, w: x @ w @ w, I, I),
        "thrice-mixed": by(lambda x, w: ((x @ w).tanh() @ w.t() * w.sum(0)).tanh() @ w, I, I),
        "with-its-diagonal": by(lambda x, w: (x @ w).tanh() * w.diagonal(), I, I),
    },
)

add(
    "product",
    None,
    {
        "bias-of-other": by(lambda x, w: torch.addmm(w[0], x, w)),
        "column-of-weight": by(lambda x, w: torch.mv(x, w[:, 0]).unsqueeze(1)),
        "chain-of-weights": by(lambda x, w: x @ (w @ param(O, O))),
        "lowrank": by(lambda x, w: (x @ param(I, 2)) @ (param(2, O) * 0.5) * w, 1),
        "multi-dot": by(lambda x, w: torch.linalg.multi_dot([x, w, param(O, 2), param(2, 4)])),
        "quadratic-form": by(lambda x, w: torch.einsum("bi,ij,bj->b", x, w @ w.t(), x).unsqueeze(1)),
        "weight-power": by(lambda x, w: x @ (w @ w), I, I),
        "matrix-exponential": by(lambda x, w: x @ torch.matrix_exp(w - w.t()), I, I),
        "symmetrised": by(lambda x, w: x @ (w + w.t()), I, I),
        "triangular": by(lambda x, w: x @ w.tril(), I, I),
        "masked-weight": by(lambda x, w: x @ (w * (torch.rand(I, O) > 0.5))),
        "softmax-weight": by(lambda x, w: x @ w.softmax(0)),
        "kron": by(lambda x, w: torch.kron(x, w)[::2], 2, 2),
        "weight-assembled": by(lambda x, w: x @ torch.cat([w, param(I, 2)], 1)),
        "weight-stacked": by(lambda x, w: x @ torch.stack([param(I), param(I)], 1)),
        "weight-dropout": by(lambda x, w: x @ nn.functional.dropout(w, 0.3)),
        "weight-quantised": by(lambda x, w: x @ (w + (w.round() - w).detach())),
        "addbmm": lambda: fit(torch.addbmm(param(3, 2), nn.Linear(4, 5)(data(2, 3, 4)), data(2, 5, 2))),
        "dots": lambda: torch.stack([torch.dot(row, w) for w in [param(I)] for row in nn.Linear(4, I)(data(B, 4))]),
        "outer-of-parameters": lambda: fit(data() @ torch.outer(param(I), param(O))),
        "vdot": lambda: torch.stack([torch.vdot(param(I), row) for row in data()]),
        "addr": lambda: fit(torch.addr(param(B, O), param(B), param(O))),
        "rows-loop": lambda: torch.stack([mlp(I, O)(row).square().sum() for row in data()]),
        "shared-rows-loop": lambda: torch.stack([net(x).norm() for net in [mlp(I, 7, O)] for x in data()]),
        "loss-is-a-parameter": lambda: param(4),
        "loss-is-a-view": lambda: param(4, 3)[1:].reshape(-1)[:5],
        "loss-is-a-scalar-parameter": lambda: [param(), nn.Linear(I, 1)(data()).sum()],
        "loss-is-a-sum-of-parameter": lambda: [p.sum() for p in mlp(I, O).parameters()],
    },
)
