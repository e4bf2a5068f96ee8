"""Where a product adds to the residual by itself, a model says what it says without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo import LLM, SamplingParams
from tests.tiny_models import make_tiny_llama


def test_sums_within_products_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False)
    prompts = [list(range(2, n)) for n in (9, 40, 130)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    found = []
    calls = 0

    def onto(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        residual.addmm_(x, weight.t())

    monkeypatch.setattr("octavo.quant.plain.linear_onto", onto)
    for adds in (False, True):
        monkeypatch.setattr("octavo.quant.plain.adds_for_free", lambda x, adds=adds: adds)
        with LLM(str(folder), skip_tokenizer_init=True, device="cpu", enforce_eager=True) as llm:
            results = llm.generate(prompts, params, use_tqdm=False)
        found.append([[entry.logprob for entry in result.prompt_logprobs[1:]] for result in results])
        found.append([list(result.outputs[0].token_ids) for result in results])
    assert calls > 0
    assert found[1] == found[3]
    for without, within in zip(found[0], found[2], strict=True):
        assert torch.allclose(torch.tensor(without), torch.tensor(within), atol=1e-4)
