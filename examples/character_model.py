"""A small character model three ways, in the same CPU time: the mean loss, an objective per sequence, one per token."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd

NOUNS, VERBS = ["the ship", "a storm", "her brother", "the map", "my lamp"], ["finds", "follows", "leaves", "warms"]
LETTERS, TIME, WIDTH = sorted({*"".join(NOUNS + VERBS), *" ."}), 24, 32
WAYS = {
    "plain": lambda losses: losses.mean().backward(),
    "sequence": lambda losses: gramjd.gram_backward(losses.mean(1)),
    "token": lambda losses: gramjd.gram_backward(losses, gramjd.UPGrad(tol=1e-4)),
}


def text(n: int) -> Tensor:
    """n sentences of a small grammar, letter by letter."""
    lines = [f"{NOUNS[i % 5]} {VERBS[j % 4]} {NOUNS[k % 5]}." for i, j, k in torch.randint(60, (n, 3)).tolist()]
    return torch.tensor([LETTERS.index(letter) for letter in " ".join(lines)])


def token_losses(model: nn.ModuleList, data: Tensor) -> Tensor:
    """The loss of every letter, [sequences, TIME]: one causal block between a table of letters and its transpose."""
    letters, places, block = model
    hidden = block(letters(data[:, :-1]) + places.weight, torch.ones(TIME, TIME).triu(1).bool(), is_causal=True)
    return cross_entropy((hidden @ letters.weight.T / WIDTH**0.5).transpose(1, 2), data[:, 1:], reduction="none")


def train(way: str, steps: int, clock: Callable[[], float], until: float = 0.0) -> tuple[int, float, float]:
    """At least so many steps, and until the clock has gone so far: steps, what they took, the loss on new text."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
    model = nn.ModuleList([nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(TIME, WIDTH), block])
    optimizer, corpus, start, done = torch.optim.Adam(model.parameters(), lr=3e-3), text(2000), 0.0, -1
    while done < steps or clock() - start < until:
        start = clock() if done == 0 else start  # the first step of a kind takes longer, and is not counted
        optimizer.zero_grad()
        WAYS[way](token_losses(model, corpus[torch.randint(len(corpus) - TIME, (4, 1)) + torch.arange(TIME + 1)]))
        optimizer.step()
        done += 1
    return done, clock() - start, token_losses(model, text(400)[: 200 * (TIME + 1)].view(200, -1)).mean().item()


def main(steps: int = 60, clock: Callable[[], float] = time.process_time) -> dict[str, tuple[int, float, float]]:
    """All three for the same steps, and plain training once more for as long as the tokens took."""
    found = {way: train(way, steps, clock) for way in WAYS}
    found["plain, as long as token"] = train("plain", steps, clock, until=found["token"][1])
    for way, (done, took, loss) in found.items():
        print(f"{way}: loss {loss:.2f} after {done} steps, {took / found['plain'][1]:.1f} times the work of plain")
    return found


if __name__ == "__main__":
    main()
