"""Fused attention: [B, H, T, d] with B and H apart, positions mixed. Unfused attention is products and softmax."""

from __future__ import annotations

from gramjd.engine.rules.vocabulary import Rule, leading, named

_NAMES = """
    ScaledDotProductCudnnAttention ScaledDotProductEfficientAttention ScaledDotProductFlashAttention
    ScaledDotProductFlashAttentionForCpu ScaledDotProductFusedAttentionOverrideable
"""

RULES: dict[str, Rule] = named(_NAMES, leading(lambda visit: 2))
