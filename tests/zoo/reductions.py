"""Reductions, linear algebra and transforms inside a sample."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, fit, param

B, T, D = 4, 3, 5


def hidden(*shape: int) -> Tensor:
    *lead, last = shape or (B, T, D)
    return nn.Linear(5, last)(torch.randn(*lead, 5))


def of(f: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], Tensor]:
    """``fit`` of ``f`` of a linear map; a result without further axes is a vector of losses."""

    def build() -> Tensor:
        y = f(hidden(*shape))
        y = torch.view_as_real(y) if y.is_complex() else y
        return fit(y.reshape(len(y), -1))

    return build


def square(f: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """``f`` of a well-conditioned square matrix per sample."""
    return of(lambda x: f(x * 0.3 + 2 * torch.eye(T)), B, T, T)


def definite(f: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return of(lambda x: f(x @ x.mT + torch.diag(torch.arange(1.0, T + 1).to(x))), B, T, T)


def attention_entropy(x: Tensor) -> Tensor:
    p = (x @ x.mT).softmax(-1)
    return -(p * p.log()).sum(-1).mean(-1)


def covariance_pool(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return (centred.mT @ centred / (T - 1)).flatten(1)


def sinkhorn(x: Tensor) -> Tensor:
    log_p = x @ x.mT
    for _ in range(3):
        log_p = log_p - log_p.logsumexp(2, keepdim=True)
        log_p = log_p - log_p.logsumexp(1, keepdim=True)
    return log_p.exp()


def kalman_step(x: Tensor) -> Tensor:
    """Gain of a small filter whose noise is a parameter."""
    p = x @ x.mT + torch.eye(T)
    gain = p @ torch.linalg.inv(p + param(T).exp().diag())
    return gain @ x


add(
    "reduce",
    "sample",
    {
        "sum": of(lambda x: x.tanh().sum(1)),
        "sum-two": of(lambda x: x.tanh().sum((1, 2))),
        "sum-keepdim": of(lambda x: x * x.sum(1, keepdim=True)),
        "sum-by-flat": of(lambda x: x.tanh().flatten(1).sum(-1)),
        "mean": of(lambda x: x.exp().mean(-1)),
        "mean-two": of(lambda x: x.exp().mean((2, 1))),
        "nansum": of(lambda x: x.nansum(1)),
        "prod": of(lambda x: x.prod(-1)),
        "var": of(lambda x: x.var(1)),
        "var-biased": of(lambda x: x.var((1, 2), unbiased=False)),
        "std": of(lambda x: x.std(-1)),
        "std-keepdim": of(lambda x: x / x.std(-1, keepdim=True)),
        "var-mean": of(lambda x: torch.cat(torch.var_mean(x, 1), -1)),
        "std-mean": of(lambda x: torch.cat(torch.std_mean(x, 1), -1)),
        "sort-stable": of(lambda x: x.sort(dim=-1, stable=True).values[..., ::2]),
        "norm-as-type": of(lambda x: norm.ScalarOpt_dim_dtype(x, 3, [1], False, dtype=torch.float64).to(x.dtype)),
        "norm": of(lambda x: x.norm(dim=-1)),
        "norm-one": of(lambda x: x.norm(p=1, dim=(1, 2))),
        "norm-inf": of(lambda x: x.norm(p=float("inf"), dim=1)),
        "norm-three": of(lambda x: torch.linalg.vector_norm(x, 3, dim=2)),
        "frobenius": of(lambda x: torch.linalg.matrix_norm(x)),
        "nuclear": of(lambda x: torch.linalg.matrix_norm(x, "nuc")),
        "amax": of(lambda x: x.amax(1)),
        "amin-two": of(lambda x: x.amin((1, 2))),
        "amax-ties": of(lambda x: x.relu().amax(-1)),
        "max-values": of(lambda x: x.max(1).values),
        "min-values": of(lambda x: x.min(-1).values * x.max(-1).values),
        "median": of(lambda x: x.median(-1).values),
        "nanmedian": of(lambda x: x.nanmedian(1).values),
        "quantile": of(lambda x: x.quantile(0.3, dim=2)),
        "logsumexp": of(lambda x: x.logsumexp(-1)),
        "logsumexp-two": of(lambda x: x.logsumexp((1, 2))),
        "softmax": of(lambda x: x.softmax(1)),
        "log-softmax": of(lambda x: x.log_softmax(-1)),
        "softmax-pool": of(lambda x: (x * x.softmax(1)).sum(1)),
        "cosine": of(lambda x: F.cosine_similarity(x[:, 0], x[:, 1])),
        "cosine-tokens": of(lambda x: F.cosine_similarity(x, x.flip(1), dim=-1)),
        "cosine-to-parameter": of(lambda x: F.cosine_similarity(x, param(D), dim=-1)),
        "pairwise-distance": of(lambda x: F.pairwise_distance(x[:, 0], x[:, 2])),
        "normalize": of(lambda x: F.normalize(x, dim=-1)),
        "cdist-in-sample": of(lambda x: torch.cdist(x, x.flip(1) + 1)),
        "cdist-one": of(lambda x: torch.cdist(x, x.sin() + 2, p=1)),
        "trapezoid": of(lambda x: torch.trapezoid(x, dim=1)),
        "diff": of(lambda x: x.diff(dim=1)),
        "gradient": of(lambda x: torch.gradient(x, dim=2)[0]),
        "cross": of(lambda x: torch.linalg.cross(x, x.roll(1, 1), dim=1)),
        "renorm": of(lambda x: x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1.0)),
        "attention-entropy": of(attention_entropy),
        "covariance": of(covariance_pool),
        "sinkhorn": of(sinkhorn),
    },
)

add(
    "linalg",
    "sample",
    {
        "inverse": square(torch.linalg.inv),
        "solve": square(lambda a: torch.linalg.solve(a, hidden(B, T, 2))),
        "solve-vector": square(lambda a: torch.linalg.solve(a, hidden(B, T).unsqueeze(-1))),
        "determinant": square(lambda a: torch.linalg.det(a).unsqueeze(1)),
        "log-determinant": definite(lambda a: torch.logdet(a).unsqueeze(1)),
        "slogdet": definite(lambda a: torch.linalg.slogdet(a)[1].unsqueeze(1)),
        "cholesky": definite(torch.linalg.cholesky),
        "eigenvalues": definite(torch.linalg.eigvalsh),
        "eigenvalues-general": square(lambda a: torch.linalg.eigvals(a + torch.arange(3.0).to(a).diag()).abs()),
        "eigenvectors-general": square(lambda a: torch.linalg.eig(a + torch.arange(3.0).to(a).diag())[1].abs()),
        "lu-factor": square(lambda a: torch.linalg.lu_factor(a)[0]),
        "singular-values": square(torch.linalg.svdvals),
        "qr": square(lambda a: torch.linalg.qr(a)[1].abs()),
        "triangular-solve": square(lambda a: torch.linalg.solve_triangular(a.tril(), hidden(B, T, 2), upper=False)),
        "matrix-power": square(lambda a: torch.linalg.matrix_power(a, 3)),
        "matrix-exponential": square(torch.linalg.matrix_exp),
        "pseudo-inverse": square(torch.linalg.pinv),
        "trace": square(lambda a: a.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)),
        "kalman": of(kalman_step),
        "mahalanobis": of(lambda x: torch.einsum("bti,ij,btj->bt", x, param(D, D), x)),
    },
)

add(
    "fourier",
    "sample",
    {
        "fft-real": of(lambda x: torch.fft.fft(x).real),
        "rfft-power": of(lambda x: torch.fft.rfft(x, dim=1).abs().square()),
        "rfft-parts": of(lambda x: torch.view_as_real(torch.fft.rfft(x))),
        "fft2-angle": of(lambda x: torch.fft.fft2(x + 3).angle()),
        "filter": of(lambda x: torch.fft.irfft(torch.fft.rfft(x) * param(3), n=D)),
        "filter-complex": of(lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.complex(param(3), param(3)), n=D)),
        "shift": of(lambda x: torch.fft.fftshift(x, dim=-1)),
        "complex-product": of(lambda x: (torch.complex(x, x.sin()) * torch.complex(x.cos(), x)).imag),
        "fnet": of(lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=1).real),
    },
)
add("fourier", None, {"over-batch": of(lambda x: torch.fft.fft(x, dim=0).real)})


def each(f: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """Losses that are each ``f`` of all numbers of one sample."""
    return lambda: torch.stack([f(sample) for sample in hidden().tanh()])


# The overloads that torch's own functions no longer call.
norm = torch.ops.aten.norm

add(
    "reduce",
    "sample",
    {
        "all-max": each(lambda x: x.max().exp()),
        "all-min": each(lambda x: x.min().exp()),
        "all-median": each(lambda x: x.median().exp()),
        "all-nanmedian": each(lambda x: x.nanmedian().exp()),
        "all-prod": each(lambda x: (x + 1).prod().exp()),
        "all-norm": each(lambda x: norm.Scalar(x, 3)),
        "all-norm-as-type": each(lambda x: norm.ScalarOpt_dtype(x, 2, dtype=torch.float64)),
    },
)


def over_a_number() -> Tensor:
    """Reductions along "the" dimension of a tensor without any."""
    p = param()
    p = p.transpose(0, -1).exp().index_add(0, torch.tensor([0]), p.sin())
    return p.mean(0).exp() + p.amax(0) + p.sum(0).sin() * p.max(0).values


def aminmax_of_a_number() -> Tensor:
    p = param().exp()
    return p.sin() * p.aminmax(dim=0).min


if hasattr(torch._C._functions, "AminmaxBackward0"):  # torch 2.12 and later
    add("reduce", "sample", {"aminmax": of(lambda x: torch.sub(*x.aminmax(dim=-1)))})
    add("reduce", None, {"aminmax-of-a-number": aminmax_of_a_number})


add(
    "reduce",
    None,
    {
        "over-a-number": over_a_number,
        "cdist-to-codes": of(lambda x: torch.cdist(x, param(4, D))),
    },
)

add(
    "fourier",
    None,
    {
        "stft": of(lambda x: torch.stft(x.flatten(1), 4, 2, window=torch.ones(4), return_complex=True).abs().square()),
    },
)
