"""Token embedding and the output head; one matrix may serve as both."""

from __future__ import annotations

import torch

from octavo.layers.context import LayerContext
from octavo.model_config import ModelConfig
from octavo.quant import LinearParams


class Embedding:
    """Rows of a [vocab_size, hidden] matrix.

    A tied matrix is held once, in the linear scheme's form, and its rows are read out of that.
    """

    def __init__(self, config: ModelConfig, ctx: LayerContext):
        shape = (config.vocab_size, config.hidden_size)
        self.scheme = ctx.scheme if config.tie_word_embeddings else ctx.scheme.plain()
        self.params: LinearParams = self.scheme.make(
            ctx.take("weight", shape), None, device=ctx.device, dtype=ctx.dtype
        )

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] → [T, hidden]."""
        return self.scheme.rows(token_ids, self.params)


class OutputHead:
    """Logits over the vocabulary, from the embedding's own matrix if the model ties them."""

    def __init__(self, config: ModelConfig, ctx: LayerContext, embedding: Embedding):
        self.scheme = ctx.scheme
        if config.tie_word_embeddings:
            self.params = embedding.params
        else:
            shape = (config.vocab_size, config.hidden_size)
            weight = ctx.take("weight", shape)
            self.params = self.scheme.make(weight, None, device=ctx.device, dtype=ctx.dtype)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size]."""
        return self.scheme.apply(hidden, self.params)
