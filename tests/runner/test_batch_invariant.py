"""`--batch-invariant` on a CPU: the same logprobs, to the bit, alone, in a batch, in chunks, decoded or as a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from tests.tiny_models import make_tiny_llama

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
OPTIONS: dict[str, Any] = {
    "skip_tokenizer_init": True, "device": "cpu", "num_gpu_blocks_override": 200, "batch_invariant": True,
}  # fmt: skip
LENGTHS = (1, 5, 17, 40, 64, 33, 90, 2)


@pytest.mark.parametrize(
    ("quantization", "native_kernels"), [("none", True), ("none", False), ("int8", True), ("int4", True), ("fp8", True)]
)
def test_logprobs_depend_on_the_text_alone(tmp_path, quantization, native_kernels):
    folder = make_tiny_llama(tmp_path / "model", tokenizer=False, head_dim=32, **SHAPE)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in LENGTHS]
    decode = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=2)
    score = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    options = OPTIONS | {"quantization": quantization, "native_kernels": native_kernels}
    with LLM(str(folder), **options, max_num_batched_tokens=48) as llm:  # the longer prompts are cut
        together = [r.outputs[0] for r in llm.generate(texts, decode, use_tqdm=False)]
        for text, answer in list(zip(texts, together, strict=True))[::3]:
            alone = llm.generate([text], decode, use_tqdm=False)[0].outputs[0]  # its prefix may be cached now
            assert (alone.token_ids, alone.logprobs) == (answer.token_ids, answer.logprobs)
        whole = [text + answer.token_ids for text, answer in zip(texts, together, strict=True)]
        for text, answer, scored in zip(texts, together, llm.generate(whole, score, use_tqdm=False), strict=True):
            decoded = [entry.logprob for entry in answer.logprobs]
            assert decoded == [entry.logprob for entry in scored.prompt_logprobs[len(text) :]]
