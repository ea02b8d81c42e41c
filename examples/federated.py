"""A client per rank, which sends only what it learnt: torchrun --nproc-per-node 3 examples/federated.py."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd

SIZES = torch.tensor([400, 400, 40])  # samples per client; the last one is small, and its labels are another story
TURN = torch.tensor([0.0, 0.3, 2.4])
WAYS = {"by samples": gramjd.Constant(SIZES / SIZES.sum()), "mean": gramjd.Mean(), "UPGrad": gramjd.UPGrad()}


def network() -> nn.Module:
    """What server and clients train."""
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def learn(server: nn.Module, points: Tensor, label: Tensor) -> list[Tensor]:
    """Five steps on a client's own copy of the model: old parameters minus new ones, which is a way downhill, too."""
    own = network()
    own.load_state_dict(server.state_dict())
    optimizer = torch.optim.SGD(own.parameters(), lr=0.2)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(own(points), label).backward()
        optimizer.step()
    return [old.detach() - new.detach() for old, new in zip(server.parameters(), own.parameters(), strict=True)]


def train(aggregator: Callable[[Tensor], Tensor], rounds: int = 60) -> tuple[Tensor, int]:
    """The loss of every client at the end, and the rounds whose update went against what some client had learnt."""
    client, against = dist.get_rank(), 0
    torch.manual_seed(0)
    server = network()
    torch.manual_seed(1 + client)
    points = torch.cat([torch.randn(SIZES[client], 2), torch.full((SIZES[client], 1), float(client == 2))], dim=1)
    label = (points[:, 0] * TURN[client].cos() + points[:, 1] * TURN[client].sin() > 0).long()
    optimizer = torch.optim.SGD(server.parameters(), lr=1.0)
    for _ in range(rounds):
        learnt = zip(server.parameters(), learn(server, points, label), strict=True)
        objective = sum((p * moved).sum() for p, moved in learnt)  # its gradient is what the client learnt
        optimizer.zero_grad()
        step = gramjd.gram_backward(
            objective, lambda G: aggregator(G) / aggregator(G).sum(), inputs=server, group=dist.group.WORLD
        )
        against += int((step.gramian @ step.weights < -1e-4 * step.gramian.diagonal()).any())
        optimizer.step()
    losses = torch.zeros(len(SIZES))
    losses[client] = cross_entropy(server(points), label).detach()
    dist.all_reduce(losses)
    return losses, against


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for way, aggregator in WAYS.items():
        losses, against = train(aggregator)
        if dist.get_rank() == 0:
            print(
                f"{way}: worst client {losses.max():.3f}, mean {losses.mean():.3f}, rounds against a client {against}"
            )
    dist.barrier()  # no rank ends while another one still talks to it
    dist.destroy_process_group()
