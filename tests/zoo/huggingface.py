"""Tiny random models of Hugging Face transformers, with one loss per sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.zoo.registry import add

B, T, V = 3, 5, 11
TEXT = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
QUIET = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def model(
    config: str,
    head: str,
    train: bool = True,
    attention: str | None = "eager",
    experts: str | None = None,
    **options: Any,
) -> Any:
    import transformers

    given = getattr(transformers, config)(**options)
    if attention:
        given._attn_implementation = attention
    if experts:
        given._experts_implementation = experts
    made = getattr(transformers, head)(given)
    return made.to(torch.get_default_dtype()).train(train)


def ids(low: int = 3, t: int = T) -> Tensor:
    return torch.randint(low, V, (B, t))


def padding() -> Tensor:
    return (torch.arange(T) < torch.tensor([[5], [3], [4]])).long()


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the tokens of each sample."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def causal(config: str, head: str, masked: bool = False, **options: Any) -> Callable[[], Tensor]:
    """Next-token losses."""

    def build() -> Tensor:
        tokens = ids()
        call = {"attention_mask": padding()} if masked else {}
        logits = model(config, head, **options)(input_ids=tokens, use_cache=False, **call).logits
        return token_loss(logits[:, :-1], tokens[:, 1:])

    return build


def gpt2(attention: str = "eager", masked: bool = False, **options: Any) -> Callable[[], Tensor]:
    sizes = {"vocab_size": V, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 12}
    return causal("GPT2Config", "GPT2LMHeadModel", masked, attention=attention, **{**sizes, **QUIET, **options})


def llama(attention: str = "eager", masked: bool = False, **options: Any) -> Callable[[], Tensor]:
    sizes = {**TEXT, **QUIET, "num_key_value_heads": 1, "max_position_embeddings": 16, **options}
    return causal("LlamaConfig", "LlamaForCausalLM", masked, attention=attention, **sizes)


def mixtral(experts: str) -> Tensor:
    sizes = {**TEXT, **QUIET, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    return causal("MixtralConfig", "MixtralForCausalLM", experts=experts, max_position_embeddings=16, **sizes)()


def mamba() -> Tensor:
    sizes = {
        "vocab_size": V,
        "hidden_size": 6,
        "num_hidden_layers": 1,
        "state_size": 3,
        "expand": 2,
        "time_step_rank": 2,
    }
    return causal("MambaConfig", "MambaForCausalLM", attention=None, **sizes, **QUIET)()


def bert(head: str, attention: str = "eager", masked: bool = False, train: bool = True) -> Callable[[], Tensor]:
    def build() -> Tensor:
        net = model("BertConfig", head, train, attention, max_position_embeddings=8, num_labels=3, **TEXT)
        logits = net(input_ids=ids(), attention_mask=padding() if masked else None).logits
        if logits.dim() == 2:
            return F.cross_entropy(logits, torch.tensor([0, 2, 1]), reduction="none")
        return token_loss(logits, ids())

    return build


def t5(tied: bool = True) -> Tensor:
    sizes = {
        "vocab_size": V,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    options = {"pad_token_id": 0, "decoder_start_token_id": 0, "tie_word_embeddings": tied, "dropout_rate": 0.1}
    net = model("T5Config", "T5ForConditionalGeneration", attention="eager", **sizes, **options)
    labels = ids(t=4)
    logits = net(input_ids=ids(), decoder_input_ids=ids(t=4), use_cache=False).logits
    return token_loss(logits, labels)


def vit(attention: str = "eager") -> Tensor:
    sizes = {key: value for key, value in TEXT.items() if key != "vocab_size"}
    net = model(
        "ViTConfig", "ViTForImageClassification", True, attention, image_size=6, patch_size=3, num_labels=3, **sizes
    )
    return F.cross_entropy(net(pixel_values=torch.randn(B, 3, 6, 6)).logits, torch.tensor([0, 2, 1]), reduction="none")


def convnext() -> Tensor:
    sizes = {"hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2, "patch_size": 2, "num_labels": 3}
    net = model("ConvNextConfig", "ConvNextForImageClassification", attention=None, **sizes)
    logits = net(pixel_values=torch.randn(B, 3, 16, 16)).logits
    return F.cross_entropy(logits, torch.tensor([0, 2, 1]), reduction="none")


add(
    "hf",
    "sample",
    {
        "gpt2": gpt2(),
        "gpt2-sdpa": gpt2("sdpa"),
        "gpt2-padding": gpt2(masked=True),
        "gpt2-untied": gpt2(tie_word_embeddings=False),
        "llama": llama(),
        "llama-sdpa": llama("sdpa"),
        "llama-tied": llama(tie_word_embeddings=True),
        "bert-classifier": bert("BertForSequenceClassification"),
        "bert-classifier-sdpa": bert("BertForSequenceClassification", "sdpa"),
        "bert-masked-lm": bert("BertForMaskedLM"),
        "bert-masked-lm-padding": bert("BertForMaskedLM", masked=True, train=False),
        "vit": vit,
        "vit-sdpa": lambda: vit("sdpa"),
        "convnext": convnext,
    },
)
add("hf", "sample", {"t5": t5, "t5-untied": lambda: t5(False)}, tol=1e-6)
add(
    "hf",
    None,
    {"mixtral": lambda: mixtral("eager"), "mixtral-batched": lambda: mixtral("batched_mm"), "mamba": mamba},
    tol=1e-6,
)
add("hf", None, {"mixtral-grouped": lambda: mixtral("grouped_mm")}, dtypes=(torch.float32,))
