"""Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3, arXiv 2407.21783) and what shares its shape, as SmolLM2."""

from __future__ import annotations

import copy

import torch

from octavo.layers.attention import Attention
from octavo.layers.batch import ForwardBatch
from octavo.layers.context import LayerContext
from octavo.layers.embedding import Embedding, OutputHead
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.model_config import ModelConfig


class LlamaLayer:
    """norm → attention → norm → gated MLP, with the residual carried beside the hidden states, or in them (None)."""

    def __init__(self, config: ModelConfig, ctx: LayerContext, index: int):
        self.attn_norm = RMSNorm(ctx.at("input_layernorm"), config.hidden_size, config.rms_norm_eps)
        self.attn = Attention(config, ctx.at("self_attn"), index)
        self.mlp_norm = RMSNorm(ctx.at("post_attention_layernorm"), config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config, ctx.at("mlp"))

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        batch: ForwardBatch,
        wanted: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        normed, carried = self.attn_norm.into(self.attn.qkv, x, residual)
        x, residual = self.attn(normed, carried, batch, wanted)
        normed, carried = self.mlp_norm.into(self.mlp.gate_up, x, residual)
        return self.mlp(normed, carried)


class Llama:
    """Embedding, layers, final norm, and the output head."""

    def __init__(self, config: ModelConfig, ctx: LayerContext):
        self.config = config
        self.embedding = Embedding(config, ctx.at("model.embed_tokens"))
        self.layers = [LlamaLayer(config, ctx.at(f"model.layers.{i}"), i) for i in range(config.num_hidden_layers)]
        self.norm = RMSNorm(ctx.at("model.norm"), config.hidden_size, config.rms_norm_eps)
        self.head = OutputHead(config, ctx.at("lm_head"), self.embedding)

    def hidden_states(self, batch: ForwardBatch) -> torch.Tensor:
        """[T, hidden], normed: what the head reads; [S, hidden] if the batch says which S tokens are wanted."""
        x: torch.Tensor = self.embedding(batch.token_ids)
        residual: torch.Tensor | None = None
        for layer in self.layers[:-1]:
            x, residual = layer(x, residual, batch)
        x, residual = self.layers[-1](x, residual, batch, batch.wanted)
        return self.norm(x, residual)[0]

    def shallow(self, layers: int) -> Llama:
        """The same with so many of the layers, the last among them."""
        few = copy.copy(self)
        if layers < len(self.layers):
            few.layers = [*self.layers[: layers - 1], self.layers[-1]]
        return few

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size]."""
        return self.head(hidden)
