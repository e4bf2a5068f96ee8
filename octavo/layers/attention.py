"""Causal self-attention over paged keys and values (Vaswani et al. 2017; Kwon et al. 2023, arXiv 2309.06180)."""

from __future__ import annotations

import math

import torch

from octavo.kernels.rope_and_cache import rope_and_cache
from octavo.layers.batch import ForwardBatch
from octavo.layers.context import LayerContext
from octavo.layers.linear import Linear
from octavo.model_config import ModelConfig


class Attention:
    """Grouped-query attention: one matrix for q, k and v; rotate; write k and v to their pages; attend; project."""

    def __init__(self, config: ModelConfig, ctx: LayerContext, index: int):
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        parts = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv = Linear(ctx, parts, config.hidden_size, config.attention_bias)
        self.out = Linear(ctx, {"o_proj": config.hidden_size}, q_size, config.attention_bias)
        self.index = index
        self.scale = 1 / math.sqrt(self.head_dim)

    def __call__(self, x: torch.Tensor, batch: ForwardBatch, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, hidden] → [T, hidden], or [S, hidden] of the wanted tokens [S]."""
        k_cache, v_cache = batch.kv_caches[self.index]
        q = rope_and_cache(
            self.qkv(x),
            batch.cos_sin,
            batch.metadata.positions,
            batch.metadata.slot_mapping,
            k_cache,
            v_cache,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
        )
        attended = batch.attend(q, k_cache, v_cache, batch.metadata, self.scale)
        attended = attended.view(x.shape[0], self.num_heads * self.head_dim)
        return self.out(attended if wanted is None else attended[wanted])
