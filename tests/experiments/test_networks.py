"""The networks have the paper's numbers of parameters and take the sets' images."""

import pytest
import torch

from gramjd.experiments import networks
from gramjd.experiments.data.sets import DATA


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(networks.cifar_net, 134_666), (networks.svhn_net, 34_570), (networks.mnist_net, 130_890)],
)
def test_parameters_are_the_papers(make, parameters):
    assert sum(p.numel() for p in make().parameters()) == parameters


@pytest.mark.parametrize("key", DATA)
def test_takes_its_images(key):
    assert DATA[key].network()(torch.randn(2, *DATA[key].shape)).shape == (2, 10)


@pytest.mark.parametrize(("name", "parameters"), [("cnn", 13_706), ("mlp", 26_122)])
def test_those_of_the_demo(name, parameters):
    network = networks.DEMO[name]()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.randn(2, *DATA["digits"].shape)).shape == (2, 10)
