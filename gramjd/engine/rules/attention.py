"""Fused attention: [B, H, T, d] with B and H apart, positions mixed. Unfused attention is products and softmax."""

from __future__ import annotations

from gramjd.engine.rules.vocabulary import Rule, leading

_KINDS = ("FlashAttention", "FlashAttentionForCpu", "EfficientAttention", "CudnnAttention", "FusedAttentionOverrideable")

RULES: dict[str, Rule] = {f"ScaledDotProduct{kind}Backward0": leading(lambda visit: 2) for kind in _KINDS}
