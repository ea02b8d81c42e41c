"""Profile a step of your own model: write the function `make` and run

gramjd profile examples/profile_my_model.py:make --sweep m=8,32,128 --out runs/profile
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gramjd.profiling import Profile, profile_step


def make(m=32):
    """A model, and a function that gives its m losses with a fresh graph."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 49, 10))
    images, labels = torch.randn(m, 3, 16, 16), torch.randint(10, (m,))
    return model, lambda: cross_entropy(model(images), labels, reduction="none")


def main(m: int = 64) -> Profile:
    """The same from Python: plain training beside both ways to update."""
    profile = profile_step(make, m=m, methods=("plain", "gramjd", "gramjd reuse"), rounds=5, isolate=False)
    print(profile)
    return profile


if __name__ == "__main__":
    main()
