"""Causal self-attention over paged keys and values (Vaswani et al. 2017; Kwon et al. 2023, arXiv 2309.06180)."""

from __future__ import annotations

import math

import torch

from octavo.errors import ModelFileError
from octavo.kernels.rope_and_cache import rope_and_cache
from octavo.layers.batch import ForwardBatch, KVScales
from octavo.layers.context import LayerContext
from octavo.layers.linear import Activation, Linear
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
        self.kv_scales: KVScales = self._kv_scale(ctx, "k"), self._kv_scale(ctx, "v")

    def _kv_scale(self, ctx: LayerContext, which: str) -> torch.Tensor:
        """float32 [num_kv_heads]: the checkpoint's scale for e4m3 pages, under the names that tools give it, or 1."""
        names = [f"{which}_scale", f"{which}_proj.{which}_scale", f"{which}_proj.output_scale"]
        found = next((name for name in names if ctx.has(name)), None)
        if found is None:
            return torch.ones(self.num_kv_heads, device=ctx.device)
        scale = ctx.source.get(f"{ctx.prefix}{found}").float().flatten()
        if len(scale) not in (1, self.num_kv_heads) or not (scale > 0).all() or not scale.isfinite().all():
            raise ModelFileError(
                f"{ctx.prefix}{found} has to be 1 or {self.num_kv_heads} positive numbers.",
                fix="Download the model again, or make it anew.",
            )
        return scale.expand(self.num_kv_heads).contiguous().to(ctx.device)

    def __call__(
        self, x: Activation, residual: torch.Tensor, batch: ForwardBatch, wanted: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x, residual [T, hidden] → as `Linear.add`, of the wanted tokens [S] if some are named."""
        k_cache, v_cache = batch.kv_caches[self.index]
        scales = self.kv_scales if k_cache.dtype == torch.float8_e4m3fn else None
        qkv = self.qkv(x)
        q = rope_and_cache(
            qkv,
            batch.cos_sin,
            batch.metadata.positions,
            batch.metadata.slot_mapping,
            k_cache,
            v_cache,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            scales,
            keep_keys=batch.keep_keys,
        )
        attended = batch.attend(q, k_cache, v_cache, batch.metadata, self.scale, scales, qkv)
        attended = attended.view(q.shape[0], self.num_heads * self.head_dim)
        if wanted is not None:
            attended, residual = attended[wanted], residual[wanted]
        return self.out.add(attended, residual)
