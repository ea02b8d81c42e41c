"""The image sets of the instance-wise experiments: per set its reader, its network and the paper's epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gramjd.experiments import networks
from gramjd.experiments.data import cifar, eurosat, idx, svhn
from gramjd.experiments.data.images import TRAIN_SIZE, Images, choose, scaled
from gramjd.extras import require

HELD_OUT = 2_000  # held-out images at most: all 10,000 of MNIST would take a third of the time of a run

SOURCES = {
    "svhn": "http://ufldl.stanford.edu/housenumbers (format 2)",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html (binary version)",
    "eurosat": "https://github.com/phelber/eurosat (RGB)",
    "mnist": "http://yann.lecun.com/exdb/mnist",
    "fashion": "https://github.com/zalandoresearch/fashion-mnist",
    "kmnist": "https://github.com/rois-codh/kmnist",
}

Reader = Callable[[Path, str, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DataSet:
    """One image set.

    Args:
        title: its name in print.
        shape: of an image, `[c, h, w]`.
        network: makes the network that is trained on it.
        epochs: passes over the 1024 images with plain SGD.
        load: `(root, seed) -> Images`; its files are looked for in a folder of `root` with the set's key.
    """

    title: str
    shape: tuple[int, int, int]
    network: Callable[[], nn.Module]
    epochs: int
    load: Callable[[Path, int], Images]


def load_digits(seed: int) -> Images:
    """scikit-learn's handwritten digits: 1024 random training images `[1, 8, 8]` out of 1797, the other 773 held out.

    Args:
        seed: chooses the subset.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    raw = require("sklearn.datasets", "demo").load_digits()
    images, labels = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1), torch.as_tensor(raw.target)
    return scaled(*((images[part], labels[part]) for part in choose(len(images), TRAIN_SIZE, seed)))


def _two_parts(key: str, read: Reader, root: Path, seed: int) -> Images:
    """The subset from the set's training part, the held-out images from its test part."""
    folder, source = root / key, SOURCES[key]
    (images, labels), (test_images, test_labels) = read(folder, "train", source), read(folder, "test", source)
    train, _ = choose(len(images), TRAIN_SIZE, seed)
    test = choose(len(test_images), min(HELD_OUT, len(test_images)), seed)[0]
    return scaled((images[train], labels[train]), (test_images[test], test_labels[test]))


def _eurosat(root: Path, seed: int) -> Images:
    """EuroSAT has no test part: the held-out images are others than the subset's."""
    entries = eurosat.index(root / "eurosat", SOURCES["eurosat"])
    train, rest = choose(len(entries), TRAIN_SIZE, seed)
    return scaled(*(eurosat.read([entries[k] for k in part.tolist()]) for part in (train, rest[:HELD_OUT])))


DATA: dict[str, DataSet] = {
    "digits": DataSet("digits", (1, 8, 8), networks.digits_net, 8, lambda root, seed: load_digits(seed)),
    "svhn": DataSet("SVHN", (3, 32, 32), networks.svhn_net, 25, partial(_two_parts, "svhn", svhn.read)),
    "cifar10": DataSet("CIFAR-10", (3, 32, 32), networks.cifar_net, 20, partial(_two_parts, "cifar10", cifar.read)),
    "eurosat": DataSet("EuroSAT", (3, 64, 64), networks.eurosat_net, 30, _eurosat),
    "mnist": DataSet("MNIST", (1, 28, 28), networks.mnist_net, 8, partial(_two_parts, "mnist", idx.read)),
    "fashion": DataSet("Fashion-MNIST", (1, 28, 28), networks.mnist_net, 25, partial(_two_parts, "fashion", idx.read)),
    "kmnist": DataSet("Kuzushiji-MNIST", (1, 28, 28), networks.mnist_net, 10, partial(_two_parts, "kmnist", idx.read)),
}
ADAM_EPOCHS = {"svhn": 20, "cifar10": 15}  # where the paper's Adam study differs
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def epochs_of(key: str, optimizer: str) -> int:
    """The paper's number of epochs; ours for the digits.

    >>> epochs_of("svhn", "sgd"), epochs_of("svhn", "adam"), epochs_of("mnist", "adam")
    (25, 20, 8)
    """
    return ADAM_EPOCHS.get(key, DATA[key].epochs) if optimizer == "adam" else DATA[key].epochs
