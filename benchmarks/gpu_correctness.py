"""What must hold on a GPU, each with its bound: `gpu_check.py` runs it and fails where something does not.

Logprobs against `transformers` in float32, with its own bfloat16 as the measure of what bfloat16 costs; the storm in
which batching, chunks, preemption, prefix hits, graphs and run-ahead must change nothing, exact to the token in the
batch-invariant mode; the same twice; no step of plain requests waits for the device.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from octavo import LLM, BeamSearchParams, SamplingParams
from tests.engine.test_oracle import real_prompts
from tests.tiny_models import SHAPE, llama_tensors

MODEL: dict[str, Any] = SHAPE | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 4000,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
BF16_SLACK = 1.25  # of the error that transformers has in bfloat16
# Nats a token between a decode step's logprobs and the same as a prompt's, which attends to its own keys unrounded.
DECODE_MEAN = {"bf16": 0.02, "fp8": 0.15, "fp8 kv": 0.1}
FP8_MEAN, FP8_KV_MEAN = 0.15, 0.05  # nats a token of this random model
SCORE = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)


def prompts(count: int, longest: int) -> list[list[int]]:
    """Random lengths; every third begins with the same 100 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, longest, (count,), generator=generator).tolist()
    shared = torch.randint(2, 4000, (100,), generator=generator).tolist()
    return [
        (shared if i % 3 == 0 else []) + torch.randint(2, 4000, (n,), generator=generator).tolist()
        for i, n in enumerate(lengths)
    ]


def make_model(folder: Path) -> Path:
    """Random weights of the size that trained ones have, in bfloat16, so that all compare the same numbers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    tensors = {
        name: (tensor if tensor.dim() == 1 else tensor * 0.4).bfloat16()
        for name, tensor in llama_tensors(MODEL).items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def open_llm(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), **({"device": "cuda", "skip_tokenizer_init": True, "max_num_seqs": 64} | options))


def against_transformers(folder: Path) -> dict[str, Any]:
    """Mean absolute difference of every prompt token's logprob from transformers' in float32."""
    from transformers import AutoModelForCausalLM

    texts = prompts(16, 1500)
    expected: list[torch.Tensor] = []
    floor: list[torch.Tensor] = []
    for dtype, out in ((torch.float32, expected), (torch.bfloat16, floor)):
        out += transformers_scores(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cuda"), texts)
    result: dict[str, Any] = {"transformers bf16": difference(floor, expected)}
    variants: dict[str, dict[str, Any]] = {
        "bf16": {},
        "bf16, triton attention": {"attention_backend": "triton"},
        "bf16, chunks of 200": {"max_num_batched_tokens": 200},
        "bf16, no graphs": {"enforce_eager": True},
        "batch invariant": {"batch_invariant": True},
        "fp8": {"quantization": "fp8"},
        "fp8 per tensor": {"quantization": "fp8_per_tensor"},
        "fp8 kv": {"kv_cache_dtype": "fp8"},
        "fp8 kv, chunks of 200": {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 200},
        "fp8, fp8 kv": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
    }
    for name, options in variants.items():
        with open_llm(folder, num_gpu_blocks_override=1000, **options) as llm:
            got = [scores(r) for r in llm.generate(texts, SCORE, use_tqdm=False)]
            result[name] = difference(got, expected)
            if name == "bf16":
                result["beam"] = beam_error(llm, texts[:6])
                vectors = embeddings(llm, texts[:8])
            if name == "batch invariant":
                result["embedding cosine"] = float((embeddings(llm, texts[:8]) * vectors).sum(1).min())
    bound = BF16_SLACK * result["transformers bf16"]
    result["ok"] = (
        all(result[name] <= bound for name in variants if "bf16" in name or "invariant" in name)
        and result["fp8"] <= FP8_MEAN
        and result["fp8 per tensor"] <= FP8_MEAN
        and max(result["fp8 kv"], result["fp8 kv, chunks of 200"]) <= FP8_KV_MEAN
        and result["embedding cosine"] > 0.999
        and result["beam"] < 0.5
    )
    return result


def transformers_scores(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """transformers' logprob of every token after the first; the model is let go."""
    out = []
    for text in texts:
        with torch.inference_mode():
            logits = model(torch.tensor([text], device="cuda")).logits[0, :-1].float()
        chosen = torch.tensor(text[1:], device="cuda")[:, None]
        out.append(logits.log_softmax(-1).gather(1, chosen)[:, 0].cpu())
    del model
    torch.cuda.empty_cache()
    return out


def real_model(file: Path) -> dict[str, Any]:
    """The same of SmolLM2's own weights, from a GGUF file, over prose and code of 5 to 1,500 tokens; and an answer."""
    from transformers import AutoModelForCausalLM

    with open_llm(file, num_gpu_blocks_override=1000, skip_tokenizer_init=False) as llm:
        texts = real_prompts(llm.tokenizer)
        ours = [scores(r) for r in llm.generate(texts, SCORE, use_tqdm=False)]
        question = [{"role": "user", "content": "What are the three primary colors?"}]
        answer = llm.chat(question, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)[0].outputs[0].text
    found: dict[str, Any] = {"answer": answer}
    theirs = {
        dtype: transformers_scores(
            AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype, device_map="cuda"),
            texts,
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    found["transformers bf16"] = difference(theirs[torch.bfloat16], theirs[torch.float32])
    found["bf16"] = difference(ours, theirs[torch.float32])
    close = found["bf16"] <= BF16_SLACK * found["transformers bf16"]
    return found | {"ok": close and "red" in answer.lower() and "blue" in answer.lower()}


def scores(result: Any) -> torch.Tensor:
    return torch.tensor([entry.logprob for entry in result.prompt_logprobs[1:]])


def difference(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return float(torch.cat([(a - b).abs() for a, b in zip(got, expected, strict=True)]).mean())


def embeddings(llm: LLM, texts: list[list[int]]) -> torch.Tensor:
    """[2 x prompts, hidden_size]: last token's and mean, of length one."""
    kinds: tuple[Literal["last", "mean"], ...] = ("last", "mean")
    found = [llm.embed(texts, pooling=kind, use_tqdm=False) for kind in kinds]
    return torch.tensor([result.outputs.embedding for results in found for result in results])


def beam_error(llm: LLM, texts: list[list[int]]) -> float:
    """How far a beam's sum of logprobs is from the same answer's, scored anew as a prompt; the largest difference."""
    params = BeamSearchParams(beam_width=4, max_tokens=24, ignore_eos=True)
    answers = [s for found in llm.beam_search(texts, params, use_tqdm=False) for s in found.sequences]
    again = llm.generate([answer.tokens for answer in answers], SCORE, use_tqdm=False)
    sums = [float(scores(result)[-24:].sum()) for result in again]
    return max(abs(one - answer.cum_logprob) for one, answer in zip(sums, answers, strict=True))


def storm(folder: Path, **options: Any) -> dict[str, Any]:
    """Shares of 96 mixed requests whose tokens are the same in a crowded batch, again, and alone."""
    texts = prompts(96, 700)
    mixed = [
        SamplingParams(temperature=t, top_p=p, seed=i, max_tokens=40, ignore_eos=True, n=1 + i % 2)
        for i, (t, p) in enumerate([(0.0, 1.0), (1.0, 1.0), (0.8, 0.9)] * 32)
    ]
    with open_llm(folder, num_gpu_blocks_override=150, max_num_batched_tokens=512, **options) as llm:
        crowded = [ids(r) for r in llm.generate(texts, mixed, use_tqdm=False)]
        preemptions, swapped = llm.stats().num_preemptions, llm.stats().swapped_in_pages
        again = [ids(r) for r in llm.generate(texts, mixed, use_tqdm=False)]
        alone = [ids(llm.generate(t, p, use_tqdm=False)[0]) for t, p in zip(texts, mixed, strict=True)]
        stats = llm.stats()
    same = {"again": agreement(crowded, again), "alone": agreement(crowded, alone)}
    return same | {
        "preemptions": preemptions,
        "swapped_in_pages": swapped,
        "pages_free_at_end": stats.num_free_pages == stats.num_pages,
        "ok": all(share == 1 for share in same.values())
        and preemptions > 0
        and swapped > 0
        and stats.num_free_pages == stats.num_pages,
    }


def invariant_logprobs(folder: Path, **options: Any) -> dict[str, Any]:
    """Whether logprobs are the same bits alone, in a batch of 64, and as a prompt what they were as an answer."""
    texts = prompts(64, 300)
    generate = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, logprobs=0)
    with open_llm(folder, num_gpu_blocks_override=1000, batch_invariant=True, **options) as llm:
        batch = llm.generate(texts, generate, use_tqdm=False)
        alone = [llm.generate(text, generate, use_tqdm=False)[0] for text in texts[:16]]
        answers = [list(result.outputs[0].token_ids) for result in batch]
        whole = llm.generate([a + b for a, b in zip(texts, answers, strict=True)], SCORE, use_tqdm=False)
    decoded = [chosen(result) for result in batch]
    found = {
        "alone": all(a == b for a, b in zip(decoded, [chosen(result) for result in alone], strict=False)),
        "prefill": all(a == scores(result)[-32:].tolist() for a, result in zip(decoded, whole, strict=True)),
    }
    return found | {"ok": all(found.values())}


def chosen(result: Any) -> list[float]:
    out = result.outputs[0]
    values = [entry.logprob for entry in out.logprobs]
    return torch.tensor(values).tolist()


def decoding(folder: Path) -> dict[str, Any]:
    """Mean difference of logprobs of answers from the same scored as prompts, by the rows of a decode step: steps of
    few rows, of some, and of many have kernels of their own."""
    texts = prompts(64, 60)
    generate = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)
    found: dict[str, Any] = {}
    for name, options in {"bf16": {}, "fp8": {"quantization": "fp8"}, "fp8 kv": {"kv_cache_dtype": "fp8"}}.items():
        with open_llm(folder, num_gpu_blocks_override=1000, enable_prefix_caching=False, **options) as llm:
            for rows in (1, 2, 3, 16, 17, 48, 64):
                results = llm.generate(texts[:rows], generate, use_tqdm=False)
                answers = [text + list(r.outputs[0].token_ids) for text, r in zip(texts, results, strict=False)]
                again = [scores(result)[-24:] for result in llm.generate(answers, SCORE, use_tqdm=False)]
                found[f"{name}, {rows}"] = difference([torch.tensor(chosen(result)) for result in results], again)
    return found | {"ok": all(error <= DECODE_MEAN[name.split(",")[0]] for name, error in found.items())}


def ids(result: Any) -> list[int]:
    return [token for output in result.outputs for token in output.token_ids]


def agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of the requests whose tokens are all the same."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def no_waiting(folder: Path) -> dict[str, Any]:
    """What torch warns of as waiting for the device while plain requests are served."""
    texts = prompts(48, 500)
    params = [SamplingParams(temperature=i % 2, seed=i, max_tokens=30, ignore_eos=True) for i in range(48)]
    with open_llm(folder, num_gpu_blocks_override=1000) as llm:
        llm.generate(texts[:8], params[:8], use_tqdm=False)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                llm.generate(texts, params, use_tqdm=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})
    return {"places": places, "ok": not places}


def check(real: Path | None = None) -> dict[str, Any]:
    """All of it, by name; each has `ok`. `real`: SmolLM2's GGUF file."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model")
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "logprobs": lambda: against_transformers(folder),
            "storm, batch invariant": lambda: storm(folder, batch_invariant=True),
            "storm, batch invariant, fp8": lambda: storm(
                folder, batch_invariant=True, quantization="fp8", kv_cache_dtype="fp8"
            ),
            "invariant logprobs": lambda: invariant_logprobs(folder),
            "decoding": lambda: decoding(folder),
            "no waiting": lambda: no_waiting(folder),
        } | ({"real model": lambda: real_model(real)} if real else {})
        out: dict[str, Any] = {}
        for name, part in parts.items():
            try:
                out[name] = part()
            except Exception as error:  # the rest is still worth knowing
                out[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}
            print(name, json.dumps(out[name]), flush=True)
    out["ok"] = all(part["ok"] for part in out.values())
    return out
