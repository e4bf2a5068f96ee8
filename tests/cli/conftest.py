"""A stand-in for the engine: the verbs are tested without a model."""

from __future__ import annotations

import sys
import types
from typing import ClassVar

import msgspec
import pytest

from octavo.config import EngineConfig
from octavo.request import CompletionOutput, RequestOutput, SamplingParams


class Info(msgspec.Struct):
    model: str = "SmolLM2-135M-Instruct"
    architecture: str = "LlamaForCausalLM"
    device: str = "cpu, 2 threads"
    dtype: str = "float32"
    quantization: str = "int8"
    vocab_size: int = 49152
    max_model_len: int = 8192
    num_pages: int = 512
    page_size: int = 16
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 512
    memory: tuple = (("weights", "135 MiB"), ("KV pages", "256 MiB"))
    startup: tuple = (("find the model", 0.1), ("load weights", 0.5))
    notes: tuple = ()


class FakeLLM:
    """Answers every prompt with `words`; keeps what it was made with and asked."""

    made: ClassVar[list[FakeLLM]] = []
    words: tuple[str, ...] = ("Hello", ", ", "world", ".")
    finish_reason = "stop"

    def __init__(self, model="SmolLM2-135M-Instruct", *, progress=None, **options):
        self.config = EngineConfig.of(model=model, **options)
        self.info = Info(model=model)
        self.asked, self.closed = [], False
        if progress is not None:
            progress("load weights", 0.5)
        FakeLLM.made.append(self)

    def stream(self, prompt, params):
        assert isinstance(params, SamplingParams)
        self.asked.append((prompt, params))
        text, ids = "", []
        for index, word in enumerate(self.words):
            text, ids = text + word, [*ids, index]
            done = index == len(self.words) - 1
            reason = self.finish_reason if done else None
            sample = CompletionOutput(index=0, text=text, token_ids=ids, finish_reason=reason, error="broke")
            yield RequestOutput(
                request_id="1", prompt=None, prompt_token_ids=[1, 2, 3], outputs=[sample], finished=done
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True


@pytest.fixture
def llm(monkeypatch):
    """`octavo.llm` is replaced; the value is the list of engines that were made."""
    fake = type("LLM", (FakeLLM,), {})
    monkeypatch.setattr(FakeLLM, "made", [])
    module = types.ModuleType("octavo.llm")
    module.LLM = fake
    monkeypatch.setitem(sys.modules, "octavo.llm", module)
    monkeypatch.setattr("octavo.weights.resolve.resolve", lambda name, revision=None: None)
    return fake


class Terminal:
    """A stdin that types lines, and says that it is a terminal."""

    def __init__(self, *lines):
        self._lines = list(lines)

    def isatty(self):
        return True

    def readline(self):
        return self._lines.pop(0) + "\n" if self._lines else ""


@pytest.fixture
def terminal(monkeypatch):
    """Call it with the lines that a user types; Ctrl-D follows them."""

    def type_lines(*lines):
        monkeypatch.setattr("sys.stdin", Terminal(*lines))

    return type_lines
