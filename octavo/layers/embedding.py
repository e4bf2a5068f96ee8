"""Token embedding and the output head; one matrix may serve as both."""

from __future__ import annotations

import torch

from octavo.layers.context import LayerContext
from octavo.model_config import ModelConfig
from octavo.quant import LinearParams, LinearScheme


class Embedding:
    """Rows of a [vocab_size, hidden] matrix.

    A tied matrix is held once, in the linear scheme's form, and its rows are read out of that.
    """

    def __init__(self, config: ModelConfig, ctx: LayerContext):
        self.scheme: LinearScheme
        self.params: LinearParams
        if config.tie_word_embeddings:
            self.scheme, self.params = ctx.matrix({"": config.vocab_size}, config.hidden_size, head=True)
        else:
            self.scheme = ctx.schemes.usual.plain()
            weight = ctx.stacked([ctx.take("weight", (config.vocab_size, config.hidden_size))])
            self.params = self.scheme.make(weight, None, device=ctx.device, dtype=ctx.dtype)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] → [T, hidden]."""
        return self.scheme.rows(token_ids, self.params)


class OutputHead:
    """Logits over the vocabulary, from the embedding's own matrix if the model ties them."""

    def __init__(self, config: ModelConfig, ctx: LayerContext, embedding: Embedding):
        if config.tie_word_embeddings:
            self.scheme, self.params = embedding.scheme, embedding.params
        else:
            self.scheme, self.params = ctx.matrix({"": config.vocab_size}, config.hidden_size, head=True)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size]."""
        return self.scheme.apply(hidden, self.params)
