"""Attention, by module, by fused kernel and by hand, and the transformers built from it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo.registry import add, fit, param

B, T, D, HEADS = 3, 4, 8, 2


def embedded(b: int = B, t: int = T, batch_first: bool = True) -> Tensor:
    x = nn.Linear(5, D)(torch.randn(b, t, 5))
    return x if batch_first else x.transpose(0, 1)


def causal(t: int = T) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(t, dtype=torch.get_default_dtype())


def padding(b: int = B, t: int = T) -> Tensor:
    """True where a position is to be ignored; the first position never is."""
    return torch.arange(t) >= torch.randint(1, t + 1, (b, 1))


def multihead(
    batch_first: bool = True, cross: bool = False, call: dict[str, Any] | None = None, **options: Any
) -> Tensor:
    model = nn.MultiheadAttention(D, HEADS, batch_first=batch_first, **options)
    query = embedded(batch_first=batch_first)
    memory = embedded(t=5, batch_first=batch_first) if cross else query
    out, weights = model(query, memory, memory, **(call or {}))
    loss = fit(out, batch_dim=0 if batch_first else 1)
    return loss if weights is None else loss + fit(weights)


def different_widths() -> Tensor:
    model = nn.MultiheadAttention(D, HEADS, kdim=6, vdim=5, batch_first=True, add_bias_kv=True, add_zero_attn=True)
    return fit(model(embedded(), torch.randn(B, 3, 6), torch.randn(B, 3, 5), need_weights=False)[0])


def encoder(layers: int = 1, batch_first: bool = True, call: dict[str, Any] | None = None, **options: Any) -> Tensor:
    options = {"dropout": 0.0, **options}
    layer = nn.TransformerEncoderLayer(D, HEADS, 10, batch_first=batch_first, **options)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return fit(model(embedded(batch_first=batch_first), **(call or {})), batch_dim=0 if batch_first else 1)


def decoder(batch_first: bool = True, **options: Any) -> Tensor:
    layer = nn.TransformerDecoderLayer(D, HEADS, 10, batch_first=batch_first, **{"dropout": 0.0, **options})
    target, memory = embedded(batch_first=batch_first), embedded(t=5, batch_first=batch_first)
    out = layer(target, memory, tgt_mask=causal(), tgt_is_causal=True)
    return fit(out, batch_dim=0 if batch_first else 1)


def full_transformer() -> Tensor:
    model = nn.Transformer(D, HEADS, 1, 1, 10, dropout=0.1, batch_first=True)
    return fit(model(embedded(), embedded(t=3), src_key_padding_mask=padding(), tgt_mask=causal(3)))


def heads_of(x: Tensor, n: int = HEADS) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def scaled(backend: SDPBackend | None = None, kv_heads: int = HEADS, **options: Any) -> Callable[[], Tensor]:
    """Fused query, key and value maps around ``scaled_dot_product_attention``; ``options`` may be functions."""

    def build() -> Tensor:
        x, width = embedded(), kv_heads * D // HEADS
        q, k, v = nn.Linear(D, D + 2 * width)(x).split([D, width, width], -1)
        given = {key: value() if callable(value) else value for key, value in options.items()}
        with sdpa_kernel(backend) if backend else nullcontext():
            y = F.scaled_dot_product_attention(heads_of(q), heads_of(k, kv_heads), heads_of(v, kv_heads), **given)
        return fit(nn.Linear(D, 3)(y.transpose(1, 2).flatten(2)))

    return build


def learned_bias() -> Tensor:
    """A relative position bias [heads, T, T] inside the mask."""
    return param(HEADS, T, T)


def by_hand(rope: bool = False, mask: Tensor | None = None) -> Tensor:
    wq, wk, wv, wo = (nn.Linear(D, D, bias=False) for _ in range(4))
    x = embedded()
    q, k, v = heads_of(wq(x)), heads_of(wk(x)), heads_of(wv(x))
    if rope:
        q, k = rotate(q), rotate(k)
    scores = q @ k.transpose(-2, -1) / 2
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf"))
    return fit(wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D)))


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding with halves, as in Llama."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 0.1 ** torch.arange(half)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def rotate_complex() -> Tensor:
    """Rotary embedding by complex multiplication."""
    x = embedded().view(B, T, D // 2, 2)
    turn = torch.polar(torch.ones(T, D // 2), torch.arange(T)[:, None] * 0.1 ** torch.arange(D // 2))
    return fit(nn.Linear(D, 3)(torch.view_as_real(torch.view_as_complex(x.contiguous()) * turn).flatten(2)))


def einsum_attention() -> Tensor:
    w, out, x = param(3, HEADS, D, 4, scale=0.4), param(HEADS, 4, D), embedded()
    q, k, v = torch.einsum("btd,chdk->cbhtk", x, w)
    scores = torch.einsum("bhtk,bhsk->bhts", q, k).softmax(-1)
    return fit(torch.einsum("bhts,bhsk,hkd->btd", scores, v, out))


def linear_attention() -> Tensor:
    q, k, v = (nn.Linear(D, D)(embedded()) for _ in range(3))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    kv = torch.einsum("btd,bte->bde", k, v)
    return fit(torch.einsum("btd,bde->bte", q, kv) / torch.einsum("btd,bd->bt", q, k.sum(1)).unsqueeze(-1))


def causal_linear_attention() -> Tensor:
    q, k, v = nn.Linear(D, 3 * D)(embedded()).chunk(3, -1)
    state = (k.exp().unsqueeze(-1) * v.unsqueeze(-2)).cumsum(1)
    return fit((q.unsqueeze(-2) @ state).squeeze(-2))


def learned_queries() -> Tensor:
    """Perceiver: query parameters, expanded over the batch, attend to the data."""
    queries, model = param(3, D), nn.MultiheadAttention(D, HEADS, batch_first=True)
    x = embedded()
    return fit(model(queries.expand(B, -1, -1), x, x)[0])


def additive_attention() -> Tensor:
    key, query, score = nn.Linear(D, D), nn.Linear(D, D), param(D)
    x = embedded()
    weights = torch.tanh(key(x).unsqueeze(1) + query(x).unsqueeze(2)) @ score
    return fit(weights.softmax(-1) @ x)


def sliding_window() -> Tensor:
    x = nn.Linear(D, D)(embedded(t=6))
    windows = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1)
    weights = torch.einsum("btd,btdk->btk", x, windows).softmax(-1)
    return fit(torch.einsum("btk,btdk->btd", weights, windows))


def class_token() -> Tensor:
    token, table = param(1, 1, D), param(1, T + 1, D)
    x = torch.cat([token.expand(B, -1, -1), embedded()], 1) + table
    return fit(nn.Linear(D, 3)(nn.TransformerEncoderLayer(D, HEADS, 10, 0.0, batch_first=True)(x)[:, 0]))


def looped_block() -> Tensor:
    """Universal transformer: one block applied three times."""
    block, x = nn.TransformerEncoderLayer(D, HEADS, 10, 0.0, batch_first=True), embedded()
    for _ in range(3):
        x = block(x)
    return fit(x)


def attention_over_batch() -> Tensor:
    """The tokens are the samples: attention mixes them."""
    x = embedded().flatten(0, 1)[:5]
    return fit(nn.MultiheadAttention(D, HEADS)(x, x, x)[0])


def wrong_batch_first() -> Tensor:
    """Data [B, T, D] in a module that expects [T, B, D]: every sample sees the others."""
    x = embedded()
    return fit(nn.TransformerEncoderLayer(D, HEADS, 10, 0.0, batch_first=False)(x))


CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)
add(
    "attention",
    "sample",
    {
        "multihead": multihead,
        "multihead-no-weights": lambda: multihead(call={"need_weights": False}),
        "multihead-batch-second": lambda: multihead(False),
        "multihead-batch-second-no-weights": lambda: multihead(False, call={"need_weights": False}),
        "multihead-cross": lambda: multihead(cross=True),
        "multihead-cross-batch-second": lambda: multihead(False, cross=True, call={"need_weights": False}),
        "multihead-padding": lambda: multihead(call={"key_padding_mask": padding()}),
        "multihead-causal": lambda: multihead(call={"attn_mask": CAUSAL, "need_weights": False}),
        "multihead-both-masks": lambda: multihead(call={"attn_mask": CAUSAL, "key_padding_mask": padding()}),
        "multihead-head-weights": lambda: multihead(call={"average_attn_weights": False}),
        "multihead-dropout": lambda: multihead(dropout=0.3),
        "multihead-no-bias": lambda: multihead(bias=False),
        "multihead-widths": different_widths,
        "encoder": encoder,
        "encoder-two": lambda: encoder(2),
        "encoder-dropout": lambda: encoder(2, dropout=0.2),
        "encoder-norm-first": lambda: encoder(norm_first=True, activation="gelu"),
        "encoder-batch-second": lambda: encoder(2, False),
        "encoder-batch-second-dropout": lambda: encoder(2, False, dropout=0.2, norm_first=True),
        "encoder-causal": lambda: encoder(call={"mask": causal(), "is_causal": True}),
        "encoder-padding": lambda: encoder(call={"src_key_padding_mask": padding()}),
        "encoder-masks": lambda: encoder(call={"mask": CAUSAL, "src_key_padding_mask": padding()}),
        "decoder": decoder,
        "decoder-batch-second": lambda: decoder(False, dropout=0.2),
        "transformer": full_transformer,
        "sdpa-default": scaled(),
        "sdpa-math": scaled(SDPBackend.MATH),
        "sdpa-flash": scaled(SDPBackend.FLASH_ATTENTION),
        "sdpa-math-causal": scaled(SDPBackend.MATH, is_causal=True),
        "sdpa-flash-causal": scaled(SDPBackend.FLASH_ATTENTION, is_causal=True),
        "sdpa-scale": scaled(scale=0.3),
        "sdpa-dropout": scaled(dropout_p=0.3),
        "sdpa-mask-bool": scaled(attn_mask=lambda: ~CAUSAL),
        "sdpa-mask-float": scaled(attn_mask=lambda: torch.randn(B, 1, T, T)),
        "sdpa-flash-mask": scaled(SDPBackend.FLASH_ATTENTION, attn_mask=lambda: torch.randn(B, HEADS, T, T)),
        "sdpa-learned-bias": scaled(attn_mask=learned_bias),
        "sdpa-grouped-query": scaled(kv_heads=1, enable_gqa=True),
        "by-hand": by_hand,
        "by-hand-causal": lambda: by_hand(mask=CAUSAL),
        "by-hand-rope": lambda: by_hand(rope=True),
        "by-hand-padding": lambda: by_hand(mask=padding()[:, None, None]),
        "rope-complex": rotate_complex,
        "einsum": einsum_attention,
        "linear": linear_attention,
        "linear-causal": causal_linear_attention,
        "learned-queries": learned_queries,
        "additive": additive_attention,
        "sliding-window": sliding_window,
        "class-token": class_token,
        "looped-block": looped_block,
    },
)

add("attention", "dense", {"over-batch": attention_over_batch, "wrong-batch-first": wrong_batch_first})
