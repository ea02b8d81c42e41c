"""Architectures of timm and transformers with random weights: is G right, where are rows dense, what does it cost.

    python -m gramjd.profiling.bench sweep --json profiling/results/sweep_cpu.json

Each model is small, in evaluation mode, and has a loss per sample. The Gramian in float64 is compared with one backward
pass per loss; `dense` are the operations that `explain` names; `ratio` is the CPU time of a step with `Mean` over that
of a plain step in float32, in turns, on one thread. A model that cannot be built is named with the reason.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gramjd
from gramjd.engine.choice import only
from gramjd.errors import GramjdError
from gramjd.profiling.bench.few import load, report
from gramjd.profiling.environment import describe, products_used
from gramjd.profiling.timing import interleave, ratio, spread
from gramjd.text_table import digits

M, CLASSES, LENGTH, VOCABULARY = 8, 10, 48, 1000
CHECKED = 4  # losses that a backward pass each is made for
TIMM = (
    *("resnet18", "resnet26d", "resnext26ts", "seresnext26d_32x4d", "res2net50_14w_8s", "regnetx_002", "regnety_002"),
    *("regnetz_005", "densenet121", "vgg11", "dla34", "darknet17", "cspresnet50", "hrnet_w18_small", "selecsls42"),
    *("mobilenetv2_050", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mnasnet_050", "ghostnet_050", "lcnet_050"),
    *("tinynet_e", "efficientnet_lite0", "efficientvit_m0", "fbnetc_100", "mobileone_s0", "repvgg_a0", "rexnet_100"),
    *("convnext_atto", "convnextv2_atto", "edgenext_xx_small", "poolformer_s12", "mobilevit_xxs", "mobilevitv2_050"),
    *("fastvit_t8", "repvit_m0_9", "starnet_s1", "hardcorenas_a", "nfnet_l0", "ghostnetv2_100", "semnasnet_075"),
)
# timm's transformers take the size of the image as an option.
TIMM_SIZED = (
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "mixer_s32_224"),
    *("resmlp_12_224", "gmlp_ti16_224", "visformer_tiny"),
)
TRANSFORMERS = (
    *(
        "gpt2",
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "phi",
        "phi3",
        "opt",
        "bloom",
        "gpt_neox",
    ),
    *(
        "gpt_neox",
        "gptj",
        "falcon",
        "stablelm",
        "olmo",
        "olmo2",
        "starcoder2",
        "cohere",
        "granite",
        "mpt",
        "codegen",
        "xglm",
    ),
    *("bert", "roberta", "electra", "distilbert", "albert", "camembert", "mobilebert", "convbert", "ernie", "nezha"),
    *("t5", "bart", "mbart", "pegasus", "mamba", "rwkv", "biogpt", "glm", "smollm3", "helium", "nemotron"),
)
SIZES: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    **{"num_key_value_heads": 4, "d_model": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "num_layers": 2},
    **{"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "ffn_dim": 128, "d_ff": 128, "d_kv": 16, "num_heads": 4},
    **{"n_layers": 2, "n_heads": 4, "dim": 64, "hidden_dim": 128, "embedding_size": 64, "word_embed_proj_dim": 64},
    **{"head_dim": 16, "rotary_dim": 8, "attention_layers": 2, "max_position_embeddings": 64, "n_positions": 64},
}
Losses = Callable[[], Tensor]


def _timm(name: str, size: int = 64) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    options = {"img_size": 64} if name in TIMM_SIZED else {}
    size = options.get("img_size", size)
    model = import_module("timm").create_model(name, pretrained=False, num_classes=CLASSES, **options)
    images, labels = torch.randn(M, 3, size, size), torch.randint(CLASSES, (M,))

    def losses(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return cross_entropy(model(images.to(dtype)), labels, reduction="none")

    return model.eval(), losses


def _transformers(kind: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    transformers = import_module("transformers")
    plain = transformers.AutoConfig.for_model(kind)
    known = {name: size for name, size in SIZES.items() if hasattr(plain, name)}
    config = transformers.AutoConfig.for_model(kind, **known, vocab_size=VOCABULARY, pad_token_id=0)
    auto = "AutoModelForCausalLM" if kind not in ("t5",) else "AutoModelForSeq2SeqLM"
    try:
        model = getattr(transformers, auto).from_config(config)
    except ValueError:
        model = transformers.AutoModelForMaskedLM.from_config(config)
    tokens = torch.randint(1, VOCABULARY, (M, LENGTH))
    extra = {"decoder_input_ids": tokens} if auto.endswith("Seq2SeqLM") else {}

    def losses(model: nn.Module) -> Tensor:
        logits = model(input_ids=tokens, **extra).logits[:, :-1]
        return cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    return model.eval(), losses


def measured(make: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]], seconds: float) -> dict[str, Any]:
    """What is found about one architecture, as plain data; `skipped` with a reason where it cannot be built or run."""
    torch.manual_seed(0)
    try:
        model, losses = make()
        losses(model)
    except Exception as error:  # whatever a library says of a configuration that it does not take
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"}
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found |= checked(model, losses)
        plan = gramjd.explain(losses(model), model)
        found["dense"] = [f"{lost.operation} {lost.reason}" for lost in plan.dense]
        found["way"] = plan.way
        found |= timed(model, losses, seconds)
    return found


def independent(model: nn.Module, losses: Callable[[nn.Module], Tensor], few: int = 3) -> bool | None:
    """Returns True if no activation of a sample enters another's loss: its loss alone is what it is in the batch.

    Found by the gradients of a batch: those of loss i by the outputs of the layer that reads the batch are zero at j.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.requires_grad and not seen and out.shape[:1] == (M,):
            out.retain_grad()
            seen.append(out)

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    found = losses(model)
    for handle in handles:
        handle.remove()
    if not seen:
        return None
    for i in range(few):
        (gradient,) = torch.autograd.grad(found[i], seen, retain_graph=True)
        rest = torch.cat([gradient[:i], gradient[i + 1 :]])
        if rest.abs().max() > 1e-10 * gradient.abs().max():
            return False
    return True


def error_of(model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> float:
    """The relative distance of the first losses' part of a walk's Gramian from that of one backward pass per loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = losses(model)
    rows: list[list[Tensor]] = []
    for loss in found[:CHECKED]:
        rows.append(list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)))
    expected = found.new_zeros(CHECKED, CHECKED)
    for one in zip(*rows, strict=True):
        J = torch.stack(one).flatten(1)
        expected += J @ J.T
    with only("walk"):
        G = gramjd.gramian(found, model)[:CHECKED, :CHECKED]
    return float(torch.linalg.norm(G - expected) / torch.linalg.norm(expected))


def checked(model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> dict[str, Any]:
    """Independence and error in float64, or in float32 where an operation takes nothing else."""
    for dtype in (torch.float64, torch.float32):
        wide = copy.deepcopy(model).to(dtype)
        try:
            apart = independent(wide, losses)
            error = digits(error_of(wide, losses), 2)
        except GramjdError:
            raise
        except RuntimeError:
            if dtype == torch.float32:
                raise
        else:
            return {"independent": apart, "error": error, "checked_in": str(dtype).removeprefix("torch.")}
    raise AssertionError("one of the two has returned")


def timed(model: nn.Module, losses: Callable[[nn.Module], Tensor], seconds: float) -> dict[str, Any]:
    """CPU time of a plain step, and of one with `Mean` over it."""
    mean = gramjd.Mean()

    def plain() -> None:
        model.zero_grad()
        losses(model).mean().backward()

    def ours() -> None:
        model.zero_grad()
        gramjd.gram_backward(losses(model), mean)

    def reuse() -> None:
        model.zero_grad()
        gramjd.gram_backward(losses(model), mean, update="reuse")

    steps = {"plain": plain, "ratio": ours, "reuse": reuse}
    times = interleave(steps, rounds=15, warmup=2, seconds=seconds, fewest=3, clock=time.process_time)
    ratios = {name: ratio(times[name], times["plain"]).rounded() for name in ("ratio", "reuse")}
    return {"plain_ms": digits(1e3 * spread(times["plain"]).median), **ratios}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--library", choices=("timm", "transformers", "both"), default="both", help="default: both")
    parser.add_argument("--names", help="architectures by commas (default: all of the library)")
    parser.add_argument("--seconds", type=float, default=4.0, help="timed per model, 3 rounds at least (default: 4)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="add the results to this file, model by model")


def run(args: argparse.Namespace) -> int:
    """Go through the architectures; write after each."""
    torch.set_num_threads(1)
    facts = {"environment": describe(("torch", "gramjd", "timm", "transformers")), "products": products_used()}
    found = report(facts, {"seconds_per_model": args.seconds, "losses": M})
    if args.json and args.json.exists():
        found["cases"] = json.loads(args.json.read_text())["cases"]
    chosen = {"timm": (*TIMM, *TIMM_SIZED), "transformers": TRANSFORMERS}
    for library, names in chosen.items():
        if args.library not in (library, "both"):
            continue
        for name in args.names.split(",") if args.names else names:
            make = (lambda name=name: _timm(name)) if library == "timm" else (lambda name=name: _transformers(name))
            try:
                one = measured(make, args.seconds)
            except Exception as error:  # also what a library raises in a backward pass: named, and gone on
                one = {"refused": f"{type(error).__name__}: {str(error)[:160]}"}
            found["cases"][f"{library} {name}"] = one | {"load": load()}
            print(f"{library} {name}: {told(one)}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def told(one: Mapping[str, Any]) -> str:
    """A line about one architecture."""
    if "skipped" in one or "refused" in one:
        return f"skipped: {one.get('skipped', one.get('refused'))}"
    dense = "no dense rows" if not one["dense"] else f"dense from {one['dense'][0].split()[0]}"
    times = f"{one['ratio']['median']:.2f} and {one['reuse']['median']:.2f} over {one['plain_ms']:.3g} ms"
    return f"error {one['error']:.0e}, independent {one['independent']}, {dense}, {times}"
