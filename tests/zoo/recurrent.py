"""Recurrent networks: fused modules, unrolled cells, packed sequences, scans."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from tests.zoo.registry import add, fit, param

B, T, I, H = 3, 4, 5, 6
KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def last_state(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """[layers, B, H] of the hidden state."""
    return state if isinstance(state, Tensor) else state[0]


def fused(kind: str, whole: bool = True, **options: object) -> Callable[[], Tensor]:
    """Embed, run the module, read all outputs (``whole``) or the last state."""

    def build() -> Tensor:
        model = KINDS[kind](I, H, **options)
        first = bool(options.get("batch_first"))
        x = nn.Linear(2, I)(torch.randn(B, T, 2) if first else torch.randn(T, B, 2))
        out, state = model(x)
        if not whole:
            return fit(last_state(state), batch_dim=1)
        return fit(nn.Linear(out.shape[-1], 2)(out), batch_dim=0 if first else 1)

    return build


def cell(kind: type[nn.RNNCellBase], **options: object) -> Callable[[], Tensor]:
    def build() -> Tensor:
        step, x = kind(I, H, **options), torch.randn(T, B, I)
        state = None
        for t in range(T):
            state = step(x[t], state)
        return fit(last_state(state))  # type: ignore[arg-type]

    return build


def packed(kind: str, by_length: bool = True) -> Callable[[], Tensor]:
    def build() -> Tensor:
        model, x = KINDS[kind](I, H, batch_first=True), nn.Linear(2, I)(torch.randn(B, T, 2))
        lengths = torch.tensor([4, 3, 2] if by_length else [2, 4, 3])
        _, state = model(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=by_length))
        return fit(last_state(state)[0])

    return build


def packed_outputs() -> Tensor:
    model, x = nn.GRU(I, H), [torch.randn(n, I) for n in (4, 2, 1)]
    out, lengths = pad_packed_sequence(model(pack_sequence(x))[0], batch_first=True)
    return out.square().sum((1, 2)) / lengths


def learned_state() -> Tensor:
    """The initial state is a parameter, expanded over the batch."""
    model, h0 = nn.GRU(I, H, batch_first=True), param(1, 1, H)
    out, _ = model(torch.randn(B, T, I), h0.expand(1, B, H).contiguous())
    return fit(out)


def state_from_encoder() -> Tensor:
    encoder, decoder, head = nn.GRU(I, H), nn.GRU(2, H), nn.Linear(H, 2)
    _, state = encoder(torch.randn(T, B, I))
    return fit(head(decoder(torch.randn(3, B, 2), state)[0]), batch_dim=1)


def free_running() -> Tensor:
    """Each output is the next input."""
    step, head = nn.GRUCell(2, H), nn.Linear(H, 2)
    x, h, outputs = torch.randn(B, 2), torch.zeros(B, H), []
    for _ in range(T):
        h = step(x, h)
        x = head(h)
        outputs.append(x)
    return fit(torch.stack(outputs, 1))


def hand_written_rnn() -> Tensor:
    w, u, b = param(H, I, scale=0.5), param(H, H, scale=0.4), param(H)
    x, h = torch.randn(B, T, I), torch.zeros(B, H)
    for t in range(T):
        h = torch.tanh(F.linear(x[:, t], w) + F.linear(h, u, b))
    return fit(h)


def bptt_detached() -> Tensor:
    """Truncated: the state is detached half way."""
    step, h = nn.RNNCell(I, H), torch.zeros(B, H)
    losses = torch.zeros(B)
    for t in range(T):
        h = step(torch.randn(B, I), h.detach() if t == 2 else h)
        losses = losses + h.square().sum(1)
    return losses


def early_stop() -> Tensor:
    """Samples leave the loop at different lengths, by masking."""
    step, h, lengths = nn.GRUCell(I, H), torch.zeros(B, H), torch.tensor([[4], [2], [1]])
    for t in range(T):
        h = torch.where(t < lengths, step(torch.randn(B, I), h), h)
    return fit(h)


def attention_pooling() -> Tensor:
    model, score = nn.LSTM(I, H, batch_first=True, bidirectional=True), nn.Linear(2 * H, 1)
    out, _ = model(torch.randn(B, T, I))
    return fit((out * score(out).softmax(1)).sum(1))


def selective_scan() -> Tensor:
    """A tiny Mamba block: depthwise convolution, input-dependent step, state loop, gate."""
    d, n = 4, 3
    inp, out, skip = nn.Linear(I, 2 * d), nn.Linear(d, I), param(d)
    mix, made, log_a = nn.Conv1d(d, d, 3, padding=2, groups=d), nn.Linear(d, 1 + 2 * n), param(d, n)
    x, gate = inp(torch.randn(B, T, I)).chunk(2, -1)
    x = F.silu(mix(x.transpose(1, 2))[..., :T].transpose(1, 2))
    step, b, c = made(x).split([1, n, n], -1)
    step = F.softplus(step)
    decay = torch.exp(-step[..., None] * log_a.exp())
    h, ys = torch.zeros(B, d, n), []
    for t in range(T):
        h = decay[:, t] * h + (step * x)[:, t, :, None] * b[:, t, None]
        ys.append((h * c[:, t, None]).sum(-1))
    y = torch.stack(ys, 1) + skip * x
    return fit(out(y * F.silu(gate)))


def scan_by_cumsum() -> Tensor:
    """A linear recurrence in closed form."""
    gate, value = nn.Linear(I, H), nn.Linear(I, H)
    x = torch.randn(B, T, I)
    log_decay = F.logsigmoid(gate(x)).cumsum(1)
    return fit((value(x) * torch.exp(-log_decay)).cumsum(1) * torch.exp(log_decay))


def neural_ode() -> Tensor:
    """Runge-Kutta steps through one small net: the weights are used 8 times."""
    net, time = nn.Sequential(nn.Linear(I + 1, H), nn.Tanh(), nn.Linear(H, I)), torch.zeros(B, 1)
    x, dt = torch.randn(B, I), 0.3
    for i in range(2):
        k1 = net(torch.cat([x, time + i * dt], 1))
        k2 = net(torch.cat([x + dt / 2 * k1, time + (i + 0.5) * dt], 1))
        k3 = net(torch.cat([x + dt / 2 * k2, time + (i + 0.5) * dt], 1))
        k4 = net(torch.cat([x + dt * k3, time + (i + 1) * dt], 1))
        x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return fit(x)


def per_step_losses() -> Tensor:
    """[T, B]: a loss at every step of every sequence."""
    out, _ = nn.GRU(I, H)(torch.randn(T, B, I))
    return nn.Linear(H, 1)(out).squeeze(-1).square()


for kind in KINDS:
    add(
        kind,
        "sample",
        {
            "outputs": fused(kind),
            "outputs-batch-first": fused(kind, batch_first=True),
            "last-state": fused(kind, whole=False),
            "two-layers": fused(kind, num_layers=2),
            "dropout": fused(kind, num_layers=2, dropout=0.3),
            "bidirectional": fused(kind, bidirectional=True, batch_first=True),
            "bidirectional-state": fused(kind, whole=False, bidirectional=True, num_layers=2),
            "no-bias": fused(kind, bias=False),
            "packed": packed(kind),
            "packed-unsorted": packed(kind, by_length=False),
        },
    )

add("lstm", "sample", {"projected": fused("lstm", proj_size=2)}, dtypes=(torch.float64,))
add("rnn", "sample", {"relu": fused("rnn", nonlinearity="relu")})

add(
    "recurrent",
    "sample",
    {
        "rnn-cell": cell(nn.RNNCell),
        "rnn-cell-relu": cell(nn.RNNCell, nonlinearity="relu"),
        "gru-cell": cell(nn.GRUCell),
        "lstm-cell": cell(nn.LSTMCell),
        "lstm-cell-no-bias": cell(nn.LSTMCell, bias=False),
        "packed-outputs": packed_outputs,
        "learned-state": learned_state,
        "encoder-decoder": state_from_encoder,
        "free-running": free_running,
        "hand-written": hand_written_rnn,
        "truncated": bptt_detached,
        "early-stop": early_stop,
        "attention-pooling": attention_pooling,
        "selective-scan": selective_scan,
        "cumsum-scan": scan_by_cumsum,
        "neural-ode": neural_ode,
        "per-step-losses": per_step_losses,
    },
)

add(
    "recurrent",
    None,
    {"unbatched": lambda: [x.square().sum() for m in [nn.GRU(I, H)] for x in m(torch.randn(T, I))[0]]},
)
