"""Linear systems, decompositions, distances, complex products, scaled and quantised activations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.registry import add, add_ways, param

B, T, D = 4, 3, 6


def rows(*shape: int) -> Tensor:
    """[*shape, D], by default one row per sample."""
    return nn.Linear(5, D)(torch.randn(*(shape or (B,)), 5))


def regular(*lead: int) -> Tensor:
    """Invertible matrices that are data."""
    return 3 * torch.eye(D) + 0.3 * torch.randn(*lead, D, D)


def learned() -> nn.Parameter:
    return nn.Parameter(regular())


def systems() -> Tensor:
    """An invertible matrix per sample, made by a layer."""
    return 3 * torch.eye(D) + 0.2 * rows(B, D).tanh()


def positive(a: Tensor) -> Tensor:
    return a @ a.mT


def of_rows(solve: Callable[[Tensor], Tensor], *shape: int) -> Callable[[], Tensor]:
    """Right-hand sides as columns, one per sample (and position)."""
    return lambda: solve(rows(*shape).mT).mT


def gaussian() -> Tensor:
    noise = torch.distributions.MultivariateNormal(param(D), scale_tril=learned().tril())
    return noise.log_prob(rows()).unsqueeze(1)


def least_squares() -> Tensor:
    tall = torch.cat([regular().expand(B, D, D), 0.1 * rows(B, D)], 1)
    return torch.linalg.lstsq(tall, torch.cat([rows(B, D), rows(B, D).sin()], 1)).solution


def implicit_euler() -> Tensor:
    """x' = A x with a step that solves (I - h A) x_new = x, three times."""
    a, x = param(D, D, scale=0.3), rows().t()
    for _ in range(3):
        x = torch.linalg.solve(torch.eye(D) - 0.1 * a, x.tanh())
    return x.t()


add_ways(
    "solve",
    "sample",
    {
        "shared": of_rows(lambda x: torch.linalg.solve(learned(), x)),
        "shared-tokens": of_rows(lambda x: torch.linalg.solve(learned(), x), B, T),
        "shared-right": lambda: torch.linalg.solve(learned(), rows(), left=False),
        "frozen": of_rows(lambda x: torch.linalg.solve(regular(), x)),
        "made-of-layers": of_rows(lambda x: torch.linalg.solve(nn.Linear(D, D)(learned()) + 9 * torch.eye(D), x)),
        "apart": lambda: torch.linalg.solve(systems(), rows(B, D)),
        "apart-vectors": lambda: torch.linalg.solve(systems(), rows()),
        "frozen-vectors": lambda: torch.linalg.solve(regular(B), rows()),
        "triangular": of_rows(lambda x: torch.linalg.solve_triangular(learned().tril(), x, upper=False)),
        "triangular-leaf": of_rows(lambda x: torch.linalg.solve_triangular(learned(), x, upper=True)),
        "triangular-right": lambda: torch.linalg.solve_triangular(learned().tril(), rows(), upper=False, left=False),
        "triangular-apart": lambda: torch.linalg.solve_triangular(systems().tril(), rows(B, D), upper=False),
        "cholesky": of_rows(lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(positive(learned())))),
        "cholesky-apart": lambda: torch.cholesky_solve(rows(B, D), torch.linalg.cholesky(positive(systems()))),
        "cholesky-inverse": lambda: torch.cholesky_inverse(torch.linalg.cholesky(positive(systems()))),
        "factors": of_rows(lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(learned()), x)),
        "factors-right": lambda: torch.linalg.lu_solve(*torch.linalg.lu_factor(learned()), rows(), left=False),
        "factors-apart": lambda: torch.linalg.lu_solve(*torch.linalg.lu_factor(systems()), rows(B, D)),
        "lower-and-upper": lambda: sum(torch.linalg.lu(systems())[1:]),
        "least-squares": least_squares,
        "reflections": lambda: torch.linalg.householder_product(rows(B, D), rows().tanh()),
        "reflected": lambda: torch.ormqr(rows(B, D), rows().tanh(), rows(B, D)),
        "gaussian": gaussian,
        "implicit-euler": implicit_euler,
    },
)

add_ways(
    "distance",
    "sample",
    {
        "prototypes": lambda: torch.cdist(rows(), param(3, D)),
        "prototypes-tokens": lambda: torch.cdist(rows(B, T), param(2, D)),
        "prototypes-first": lambda: torch.cdist(param(3, D), rows()).t(),
        "manhattan": lambda: torch.cdist(rows(), param(3, D), p=1),
        "frozen": lambda: torch.cdist(rows(), torch.randn(3, D)),
        "sets": lambda: torch.cdist(rows(B, T), rows(B, 2)),
    },
)


# -- complex numbers --------------------------------------------------------------------------------------------------


def wave(x: Tensor) -> Tensor:
    return torch.complex(x, 0.5 * x.flip(-1))


def complex_param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.complex(torch.randn(shape), torch.randn(shape)))


def spectral_1d() -> Tensor:
    """A Fourier layer: channels are mixed at each frequency."""
    modes = torch.fft.rfft(rows(B, 3))
    return torch.fft.irfft(torch.einsum("bix,iox->box", modes, complex_param(3, 2, 4)), n=D)


def spectral_2d() -> Tensor:
    """The same in two dimensions, with the lowest frequencies written to an empty spectrum."""
    modes = torch.fft.rfft2(rows(B, 2, 6))
    out = torch.zeros(B, 3, 6, 4, dtype=modes.dtype)
    out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", modes[:, :, :2, :2], complex_param(2, 3, 2, 2))
    return torch.fft.irfft2(out, s=(6, 6))


def scaled_batch() -> Tensor:
    left = wave(torch.randn(B, D, 4)) @ complex_param(4, 4)
    return torch.baddbmm(complex_param(1, 1, 4), wave(rows(B, T)), left, beta=0.5 - 1j, alpha=2 + 1j).abs()


add_ways(
    "complex",
    "sample",
    {
        "linear": lambda: (wave(rows()) @ complex_param(D, 4)).abs(),
        "tokens": lambda: (wave(rows(B, T)) @ complex_param(D, 4)).imag,
        "affine": lambda: torch.addmm(complex_param(4), wave(rows()), complex_param(D, 4), alpha=1 + 2j).abs(),
        "two-layers": lambda: ((wave(rows()) @ complex_param(D, 4)).tanh() @ complex_param(4, 2)).real,
        "conjugate": lambda: (wave(rows()) @ complex_param(4, D).mH).abs(),
        "vector": lambda: torch.view_as_real(wave(rows()) @ complex_param(D)),
        "batch": scaled_batch,
        "polar": lambda: (torch.polar(rows().exp(), rows()) @ complex_param(D, 2)).real,
        "fourier-1d": spectral_1d,
        "fourier-2d": spectral_2d,
    },
)

# -- element by element, or nearly so ---------------------------------------------------------------------------------


def quantised(x: Tensor, per_channel: bool = False) -> Tensor:
    if per_channel:
        scale, zero = torch.linspace(0.05, 0.1, D, dtype=torch.float32), torch.zeros(D, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, scale, zero, x.ndim - 1, -10, 10)
    return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -10, 10)


def quantised_by_tensors() -> Tensor:
    scale, zero = torch.tensor(0.1, dtype=torch.float32), torch.tensor(1, dtype=torch.int32)
    return torch.fake_quantize_per_tensor_affine(rows(B, T), scale, zero, -10, 10)


def drawn(distribution: Callable[[Tensor], torch.distributions.Distribution]) -> Callable[[], Tensor]:
    return lambda: distribution(F.softplus(rows(B, T)) + 0.5).rsample()


add_ways(
    "scaled",
    "sample",
    {
        "renorm": lambda: torch.renorm(rows(), 2, 0, 1.0),
        "renorm-features": lambda: torch.renorm(rows(B, T).transpose(0, 1), 2, 1, 1.0).transpose(0, 1),
        "fake-quantised": lambda: quantised(rows(B, T)),
        "fake-quantised-channels": lambda: quantised(rows(B, T), per_channel=True),
        "fake-quantised-by-tensors": quantised_by_tensors,
        "gamma": drawn(lambda x: torch.distributions.Gamma(x, x.flip(0))),
        "dirichlet": drawn(torch.distributions.Dirichlet),
        "beta": drawn(lambda x: torch.distributions.Beta(x, x + 1)),
    },
)


def learned_scale(per_channel: bool) -> Callable[[], Tensor]:
    """Scale and zero point of a quantisation are parameters."""

    def build() -> Tensor:
        x, n = rows(B, T).float(), D if per_channel else 1
        scale, zero = nn.Parameter(torch.linspace(0.05, 0.1, n).float()), nn.Parameter(torch.zeros(n).float())
        if per_channel:
            return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero, 2, -10, 10)
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, -10, 10)

    return build


def observed() -> Tensor:
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

    return FusedMovingAvgObsFakeQuantize().float()(rows(B, T).float())


SINGLE = {"dtypes": (torch.float32,), "tol": 1e-5}
add_ways("scaled", "sample", {"learned": learned_scale(False), "learned-channels": learned_scale(True)}, **SINGLE)
add_ways("scaled", "sample", {"fake-quantised-observed": observed}, **SINGLE)
add("scaled", "dense", {"renorm-over-samples": lambda: torch.renorm(rows(), 2, 1, 1.0).square().sum(1)})
