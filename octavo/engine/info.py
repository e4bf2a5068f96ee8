"""What an engine says of itself once it is ready."""

from __future__ import annotations

import msgspec


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that frontends and start reports need.

    Attributes:
        model: the name or path it was asked for; architecture: the class that serves it.
        vocab_size: width of the logits; token ids are below it. hidden_size: length of an embedding.
        max_model_len: longest sequence, prompt and output.
        num_pages, page_size: the KV pool; max_num_seqs, max_num_batched_tokens: bounds of a step.
        memory: (item, amount) pairs of the memory table.
        startup: (phase, seconds) pairs of where the start's time went.
        notes: what the user should know, as a context cut to fit the memory.
    """

    model: str
    architecture: str
    device: str
    dtype: str
    quantization: str
    vocab_size: int
    max_model_len: int
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    memory: tuple[tuple[str, str], ...] = ()
    startup: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    hidden_size: int = 0
