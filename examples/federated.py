"""A client per rank, which sends only what it learnt: torchrun --nproc-per-node 3 examples/federated.py."""

from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd


def own_data(client: int, clients: int) -> tuple[Tensor, Tensor]:
    """Points with labels: 400 of a client, and 40 of the last one, for which the same points mean something else."""
    last = client == clients - 1
    points = torch.cat([torch.randn(40 if last else 400, 2), torch.full((40 if last else 400, 1), float(last))], dim=1)
    turn = torch.tensor(2.4 if last else 0.3 * client)
    return points, (points[:, 0] * turn.cos() + points[:, 1] * turn.sin() > 0).long()


def learn(own: nn.Module, points: Tensor, label: Tensor) -> list[Tensor]:
    """Five steps on a client's own copy of the model: old parameters minus new ones."""
    start = [p.detach().clone() for p in own.parameters()]
    for _ in range(5):
        gradients = torch.autograd.grad(cross_entropy(own(points), label), [*own.parameters()])
        for p, gradient in zip(own.parameters(), gradients, strict=True):
            p.data -= 0.2 * gradient
    return [old - new.detach() for old, new in zip(start, own.parameters(), strict=True)]


def main(way: str, rounds: int = 60) -> None:
    """Train together; the first rank prints the loss of the worst client, and the rounds that went against any."""
    rank, clients, against = dist.get_rank(), dist.get_world_size(), 0
    ways = {"samples": gramjd.Constant(torch.tensor([400.0] * (clients - 1) + [40.0])), "mean": gramjd.Mean()}
    torch.manual_seed(0)
    server = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    torch.manual_seed(1 + rank)
    points, label = own_data(rank, clients)
    for _ in range(rounds):
        learnt = zip(server.parameters(), learn(deepcopy(server), points, label), strict=True)
        objective = sum((p * moved).sum() for p, moved in learnt)  # its gradient is what this client learnt
        server.zero_grad()
        step = gramjd.gram_backward(objective, ways.get(way, gramjd.UPGrad()), inputs=server, group=dist.group.WORLD)
        for p in server.parameters():
            p.data -= p.grad / step.weights.sum()  # an average of the clients, whatever the weights are
        against += int((step.gramian @ step.weights < -1e-4 * step.gramian.diagonal() * step.weights.sum()).any())
    worst = cross_entropy(server(points), label).detach()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    if rank == 0:
        print(f"{way}: loss of the worst client {worst:.3f}; {against} rounds of {rounds} went against a client")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for chosen in ("samples", "mean", "upgrad"):
        main(chosen)
    dist.barrier()  # no rank ends while another one still talks to it
    dist.destroy_process_group()
