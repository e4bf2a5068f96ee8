"""Memory as arithmetic: how many KV pages there are, and the itemised table that says why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.model_config import ModelConfig

_CPU_KV_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by use, and the lengths that follow.

    Attributes:
        page_bytes: keys and values of one page in all layers; page_size: its tokens.
        max_model_len: longest sequence that is served.
        notes: what was cut to fit, for the user.
        num_host_slots: pages of preempted sequences that host memory holds.
    """

    weight_bytes: int
    page_bytes: int
    page_size: int
    num_pages: int
    max_model_len: int
    notes: tuple[str, ...] = ()
    num_host_slots: int = 0

    def table(self) -> list[tuple[str, str]]:
        """(item, amount) pairs for the start report."""
        swap = f"swap space on the host, {self.num_host_slots} pages"
        return [
            ("weights", _size(self.weight_bytes)),
            (f"KV cache, {self.num_pages} pages", _size(self.num_pages * self.page_bytes)),
            *([(swap, _size(self.num_host_slots * self.page_bytes))] if self.num_host_slots else []),
            ("longest sequence", f"{self.max_model_len} tokens"),
        ]


def page_bytes(config: ModelConfig, page_size: int, kv_dtype: torch.dtype) -> int:
    """Bytes of one page: 2 (K, V) x layers x KV heads x head size x tokens x element size."""
    elements = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * page_size
    return elements * kv_dtype.itemsize


def plan_memory(
    config: ModelConfig,
    options: EngineConfig,
    kv_dtype: torch.dtype,
    page_size: int,
    weight_bytes: int,
    budget: int | None = None,
    swap_bytes: int = 0,
) -> MemoryPlan:
    """The number of pages and the longest sequence.

    Args:
        swap_bytes: of host memory for pages of preempted sequences.
        budget: bytes for pages where the options name none; None is a CPU's default.

    Raises:
        ConfigError: an explicit --max-model-len exceeds the model's or does not fit the pages.
    """
    cache, asked = options.cache, options.model.max_model_len
    trained = config.max_position_embeddings
    if asked is not None and asked > trained:
        raise ConfigError(
            f"--max-model-len {asked} exceeds the model's context of {trained} tokens.",
            fix=f"Use at most {trained}.",
            param="max_model_len",
        )
    size, each = page_size, page_bytes(config, page_size, kv_dtype)
    if cache.num_gpu_blocks_override is not None:
        pages = cache.num_gpu_blocks_override
    elif cache.kv_cache_memory_bytes is not None:
        pages = cache.kv_cache_memory_bytes // each
    elif budget is not None:
        pages = budget // each
    else:
        pages = max(_CPU_KV_BYTES // each, -(-(asked or 0) // size))
    if pages < 1 and cache.kv_cache_memory_bytes is None:
        raise ConfigError(
            "The GPU has no memory left for KV pages beside the weights and what a step needs.",
            fix="Raise --gpu-memory-utilization, lower --max-num-batched-tokens, or take a smaller model.",
            param="gpu_memory_utilization",
        )
    if pages < 1:
        raise ConfigError(
            f"--kv-cache-memory-bytes {cache.kv_cache_memory_bytes} holds not one page of {each} bytes.",
            fix=f"Use at least {_size(each)}.",
            param="kv_cache_memory_bytes",
        )
    fits = pages * size
    if asked is not None and asked > fits:
        raise ConfigError(
            f"--max-model-len {asked} needs {-(-asked // size)} pages, but there are {pages} ({fits} tokens).",
            fix="Raise --kv-cache-memory-bytes or lower --max-model-len.",
            param="max_model_len",
        )
    notes = []
    if asked is None and fits < trained:
        notes.append(f"The context is {fits} tokens, not {trained}: raise --kv-cache-memory-bytes for more.")
    return MemoryPlan(weight_bytes, each, size, pages, asked or min(trained, fits), tuple(notes), swap_bytes // each)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
