"""One Gramian over the losses of all ranks: torchrun --nproc-per-node 4 examples/data_parallel.py."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # optimizers import it: after the group was made, it would hold it to the end
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import gramjd


def rings(n: int) -> tuple[Tensor, Tensor]:
    """n points on three rings, with a little noise, and the ring of each."""
    ring = torch.randint(3, (n,))
    angle = 2 * torch.pi * torch.rand(n)
    points = (1 + ring)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.1 * torch.randn(n, 2), ring


def main(steps: int = 300) -> float:
    """Train on all ranks; returns the accuracy on fresh points."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.manual_seed(dist.get_rank())  # from here on each rank has data of its own
    for n in range(steps):
        points, ring = rings(16)
        optimizer.zero_grad()
        losses = cross_entropy(model(points), ring, reduction="none")
        step = gramjd.gram_backward(losses, gramjd.UPGrad(), inputs=model, group=dist.group.WORLD)
        optimizer.step()
        if n % 100 == 0 and dist.get_rank() == 0:
            print(f"step {n:4d}  mean loss here {losses.mean():.3f}  losses on all ranks: {len(step.gramian)}")
    points, ring = rings(2000)
    accuracy = (net(points).argmax(1) == ring).double().mean()
    dist.all_reduce(accuracy)
    return float(accuracy) / dist.get_world_size()


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    found = main()
    if dist.get_rank() == 0:
        print(f"accuracy {found:.3f} with {dist.get_world_size()} ranks")
    dist.barrier()  # no rank ends while another one still talks to it
    dist.destroy_process_group()
