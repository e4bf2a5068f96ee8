"""Where products take the norm before them, the gate or the sum after them, a model says what it says without."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.kernels.linear import Unnormed
from octavo.kernels.rms_norm import rms_norm
from octavo.kernels.silu_and_mul import silu_and_mul
from tests.tiny_models import make_tiny_llama

FEW = 2


class References:
    """Stands in for the kernels of a GPU, and counts what they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: Counter[str] = Counter()
        for name in ("takes_unnormed", "linear", "linear_onto", "gated_linear"):
            monkeypatch.setattr(f"octavo.quant.plain.{name}", getattr(self, name))
        monkeypatch.setattr("octavo.layers.mlp.gates_alternate", lambda device: True)

    def takes_unnormed(self, x: torch.Tensor) -> bool:
        return len(x) <= FEW

    def linear(
        self, x: torch.Tensor | Unnormed, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if isinstance(x, Unnormed):
            self.calls["unnormed"] += 1
            x = rms_norm(x.values, x.gain, x.eps)
        return torch.nn.functional.linear(x, weight, bias)

    def linear_onto(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
    ) -> bool:
        if FEW < len(x) <= 40:  # as on a GPU, where few and many rows add and those between do not
            return False
        self.calls["onto"] += 1
        residual += self.linear(x, weight, bias)
        return True

    def gated_linear(
        self, x: torch.Tensor | Unnormed, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        rows = x.values if isinstance(x, Unnormed) else x
        if len(rows) % 2:  # some have no kernel for it
            return None
        self.calls["gated"] += 1
        return silu_and_mul(self.linear(x, weight, bias), pairs=True)


@pytest.mark.parametrize("bias", [False, True])
def test_fused_products_change_nothing(bias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False, attention_bias=bias, mlp_bias=bias)
    prompts = [list(range(2, n)) for n in (9, 40, 130)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, prompt_logprobs=0)
    found = []
    references = None
    for fused in (False, True):
        if fused:
            references = References(monkeypatch)
        with LLM(str(folder), skip_tokenizer_init=True, device="cpu", enforce_eager=True) as llm:
            results = [
                result for count in (3, 2, 1) for result in llm.generate(prompts[:count], params, use_tqdm=False)
            ]
        found.append([[entry.logprob for entry in result.prompt_logprobs[1:]] for result in results])
        found.append([list(result.outputs[0].token_ids) for result in results])
    assert references is not None
    assert min(references.calls[name] for name in ("unnormed", "onto", "gated")) > 0
    assert found[1] == found[3]
    for without, within in zip(found[0], found[2], strict=True):
        assert torch.allclose(torch.tensor(without), torch.tensor(within), atol=1e-4)


@pytest.mark.parametrize(("wanted", "kept"), [(1, [3]), (2, [0, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_a_shallow_model_keeps_the_last_layer(wanted: int, kept: list[int], tmp_path: Path) -> None:
    """It is the one that computes what is read and nothing else."""
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False, num_hidden_layers=4)
    with LLM(str(folder), skip_tokenizer_init=True, device="cpu") as llm:
        model = llm._engine._runner._model
        few = model.shallow(wanted)
        assert [layer.attn.index for layer in few.layers] == kept
        assert len(model.layers) == 4 and few.head is model.head
