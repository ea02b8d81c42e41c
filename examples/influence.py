"""Which training samples helped a prediction, and which carry a wrong label, from products of their gradients."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd

RATE, N, WRONG = 0.3, 40, 4


def samples(n: int) -> tuple[Tensor, Tensor]:
    """Points [n, 6] in two clouds that overlap a little, and the cloud of each."""
    label = torch.arange(n) % 2
    return torch.randn(n, 6) + 0.8 * (2 * label[:, None] - 1), label


def train(
    data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], weight: Tensor, steps: int, influence: Tensor
) -> Tensor:
    """Gradient descent on all weighted samples; adds to influence [N, N + tests], returns the test losses."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(steps):
        losses = cross_entropy(model(data[0]), data[1], reduction="none")
        if influence.numel():  # sample i moves the parameters by -rate/N g_i, which lowers loss j by rate/N g_i . g_j
            seen = torch.cat([losses, cross_entropy(model(test[0]), test[1], reduction="none")])
            influence += RATE / N * gramjd.gramian(losses, other=seen)
        optimizer.zero_grad()
        (losses @ weight / N).backward()
        optimizer.step()
    return cross_entropy(model(test[0]), test[1], reduction="none").detach()


def main(steps: int = 30) -> tuple[int, float]:
    """How many of the wrong labels have the largest self-influence; the correlation with leaving samples out."""
    torch.manual_seed(0)
    data, test = samples(N), samples(100)
    wrong = torch.randperm(N)[:WRONG]
    data[1][wrong] = 1 - data[1][wrong]

    influence = torch.zeros(N, N + 100)
    whole = train(data, test, torch.ones(N), steps, influence)
    suspects = influence[:, :N].diagonal().argsort(descending=True)[:WRONG]
    found = len(set(suspects.tolist()) & set(wrong.tolist()))

    without = [train(data, test, (torch.arange(N) != i).float(), steps, torch.zeros(0)) for i in range(N)]
    truth = (torch.stack(without) - whole).mean(1)  # what the mean test loss gains by sample i
    agreement = torch.corrcoef(torch.stack([truth, influence[:, N:].mean(1)]))[0, 1].item()
    print(
        f"{found} of {WRONG} wrong labels are the {WRONG} samples of largest self-influence; "
        f"influence correlates {agreement:.2f} with training again without a sample."
    )
    return found, agreement


if __name__ == "__main__":
    main()
