"""A program of its own: ten steps of a small net, once per backend. Prints a line per backend with a hash of the net.

python -m tests.training_hash auto torch onednn
"""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import Tensor, nn

from gramjd import UPGrad, gram_backward
from gramjd.kernels import current_products, use_backend

# Products of [SAMPLES, WIDTH] by its transpose are just large enough for oneDNN. Odd sizes leave a remainder to both.
SAMPLES, WIDTH, STEPS = 97, 335, 10


def trained() -> list[Tensor]:
    """The parameters after `STEPS` steps with UPGrad, from one seed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        x = torch.randn(SAMPLES, WIDTH)
        losses = nn.functional.cross_entropy(model(x), torch.randint(3, (SAMPLES,)), reduction="none")
        optimizer.zero_grad()
        gram_backward(losses, UPGrad())
        optimizer.step()
    return list(model.parameters())


def main() -> None:
    """Print the lines."""
    for backend in sys.argv[1:]:
        with use_backend(backend):
            content = b"".join(p.detach().numpy().tobytes() for p in trained())
            print(backend, current_products().library, hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
