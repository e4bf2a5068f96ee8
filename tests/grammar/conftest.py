"""A tiny random model with a byte-level tokenizer, and a way to run requests through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import LLM
from tests.tiny_models import make_tiny_llama

pytest.importorskip("llguidance")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)


@pytest.fixture(scope="session")
def tiny_llm(tiny_folder: Path):
    with LLM(str(tiny_folder), num_gpu_blocks_override=600, block_size=8, max_num_seqs=24, threads=1) as llm:
        yield llm
