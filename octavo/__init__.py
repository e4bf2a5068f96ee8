"""Octavo serves large language models from paged memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.request import BeamSearchParams, CompletionOutput, RequestOutput, SamplingParams, StructuredOutputs

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM
    from octavo.llm import LLM

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
]


def __getattr__(name: str) -> Any:
    """Import torch only when an engine is really asked for: `octavo --help` must not wait for it."""
    if name == "LLM":
        from octavo.llm import LLM

        return LLM
    if name == "AsyncLLM":
        from octavo.async_llm import AsyncLLM

        return AsyncLLM
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
