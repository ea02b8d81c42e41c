"""Functions to profile: a good one, and ones that break the contract."""

import os
import signal

import torch
from torch import nn


def make(m=6):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(m, 5)
    return model, lambda: model(x).square().sum(1)


def of_other_size():
    return make(4)


def one_number():
    model, losses = make()
    return model, lambda: losses().mean()


def without_graph():
    model, losses = make()
    return model, lambda: losses().detach()


def no_pair():
    return make()[0]


def no_model():
    return 3, make()[1]


def with_needs(path, m=3):
    return make(m)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def large(m=4):
    model = nn.Linear(2000, 2000)
    x = torch.randn(m, 2000)
    return model, lambda: model(x).square().sum(1)
