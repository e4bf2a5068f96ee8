"""What `benchmarks/gpu_check.py` holds to its bounds, as tests, where there is a GPU: pytest -m gpu tests/gpu."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def checks() -> Iterator[Any]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_correctness

    yield gpu_correctness
    sys.path.pop(0)


@pytest.fixture(scope="module")
def folder(checks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = checks.make_model(tmp_path_factory.mktemp("gpu") / "model")
    return made


def test_logprobs_are_as_close_to_float32_as_transformers_are(checks: Any, folder: Path) -> None:
    found = checks.against_transformers(folder)
    assert found["ok"], found


@pytest.mark.model
def test_the_real_model_is_as_close_to_float32_as_transformers_are(checks: Any, smollm2_gguf: Path) -> None:
    found = checks.real_model(smollm2_gguf)
    assert found["ok"], found


@pytest.mark.parametrize("options", [{}, {"quantization": "fp8", "kv_cache_dtype": "fp8"}], ids=["bf16", "fp8"])
def test_batching_changes_nothing_in_the_batch_invariant_mode(
    options: dict[str, Any], checks: Any, folder: Path
) -> None:
    found = checks.storm(folder, batch_invariant=True, **options)
    assert found["ok"], found


def test_logprobs_are_the_same_bits_alone_in_a_batch_and_as_a_prompt(checks: Any, folder: Path) -> None:
    found = checks.invariant_logprobs(folder)
    assert found["ok"], found


def test_steps_of_any_number_of_rows_agree_with_prompts(checks: Any, folder: Path) -> None:
    found = checks.decoding(folder)
    assert found["ok"], found


def test_no_step_of_plain_requests_waits_for_the_device(checks: Any, folder: Path) -> None:
    found = checks.no_waiting(folder)
    assert found["ok"], found
