"""The inputs of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from octavo.attention import AttentionMetadata

KVScales = tuple[torch.Tensor, torch.Tensor]
"""Of pages of e4m3, float32 [num_kv_heads] each: key = stored * first, value = stored * second."""

Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, AttentionMetadata, float, KVScales | None, torch.Tensor], torch.Tensor
]
"""As `octavo.attention.attend`; last comes what the step's own queries, keys and values were made as."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T tokens of R sequences, packed without padding.

    Attributes:
        token_ids: int64 [T].
        metadata: where each token stands and which pages its sequence has.
        cos_sin: the rotary table, float32 [max_model_len, head_dim].
        kv_caches: per layer (keys, values), each [num_pages, num_kv_heads, page_size, head_dim].
        attend: the attention backend.
        wanted: integers [S], the tokens whose hidden states will be read; None means all. What the last layer would
            compute for the others beyond their keys and values is left out.
        keep_keys: `attend` reads some keys where they were made, so they are to be rotated there too.
    """

    token_ids: torch.Tensor
    metadata: AttentionMetadata
    cos_sin: torch.Tensor
    kv_caches: Sequence[tuple[torch.Tensor, torch.Tensor]]
    attend: Attend
    wanted: torch.Tensor | None = None
    keep_keys: bool = False
