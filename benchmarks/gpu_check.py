"""Everything that needs a GPU, in one command: correctness of the engine on it, then the shared workloads.

    python benchmarks/gpu_check.py --json OUT.json [--only check|bench] [--repeat 3] [--workloads a,b]

The check compares a small random model on the GPU with the same model on the CPU in float32 (prompt logprobs), graphs
with kernel-by-kernel launches (same tokens), and a batch with each request alone. The workloads run Llama 3.1 8B's
shape with random weights in bfloat16, with defaults; times are whole `LLM.generate` calls, prefix cache emptied before.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from octavo import LLM, BeamSearchParams, SamplingParams
from octavo.bench.offline import run_workload
from octavo.bench.profile import profile
from octavo.bench.record import environment
from octavo.bench.workloads import WORKLOADS, BenchRequest, fixed
from tests.tiny_models import make_tiny_llama

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2000,
    "max_position_embeddings": 2048,
}


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 700, (count,), generator=generator).tolist()
    shared = torch.randint(0, 2000, (100,), generator=generator).tolist()
    return [
        (shared if i % 3 == 0 else []) + torch.randint(0, 2000, (n,), generator=generator).tolist()
        for i, n in enumerate(lengths)
    ]


def check() -> dict[str, Any]:
    """Compare GPU and CPU, graphs and no graphs, batch and alone."""
    texts = prompts(48)
    score = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    mixed = [
        SamplingParams(temperature=t, top_p=p, seed=i, max_tokens=40, ignore_eos=True, n=1 + i % 2)
        for i, (t, p) in enumerate([(0.0, 1.0), (1.0, 1.0), (0.8, 0.9)] * 16)
    ]
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_tiny_llama(Path(scratch) / "small", tokenizer=False, **SMALL)
        options: dict[str, Any] = {"skip_tokenizer_init": True, "max_num_seqs": 64, "num_gpu_blocks_override": 4000}
        with LLM(str(folder), device="cpu", **options) as cpu:
            expected = [scores(r) for r in cpu.generate(texts[:12], score, use_tqdm=False)]
            vectors = embeddings(cpu, texts[:12])
        with LLM(str(folder), device="cuda", **options) as gpu:
            got = [scores(r) for r in gpu.generate(texts[:12], score, use_tqdm=False)]
            graphs = [ids(r) for r in gpu.generate(texts, mixed, use_tqdm=False)]
            again = [ids(r) for r in gpu.generate(texts, mixed, use_tqdm=False)]
            alone = [ids(gpu.generate(t, p, use_tqdm=False)[0]) for t, p in zip(texts[:12], mixed, strict=False)]
            out["embedding_cosine_min"] = float((embeddings(gpu, texts[:12]) * vectors).sum(1).min())
            out["beam_score_error_max"] = beam_error(gpu, texts[:6])
            stats = gpu.stats()
        with LLM(str(folder), device="cuda", enforce_eager=True, async_scheduling=False, **options) as gpu:
            eager = [ids(r) for r in gpu.generate(texts, mixed, use_tqdm=False)]
    errors = torch.cat([(torch.tensor(a) - torch.tensor(b)).abs() for a, b in zip(got, expected, strict=True)])
    out["prompt_logprob_error_mean"], out["prompt_logprob_error_max"] = float(errors.mean()), float(errors.max())
    out["same_tokens_twice"] = agreement(graphs, again)
    out["same_tokens_graphs_and_eager"] = agreement(graphs, eager)
    out["same_tokens_batch_and_alone"] = agreement(graphs[:12], alone)
    out["pages_free_at_end"] = stats.num_free_pages == stats.num_pages
    return out


def embeddings(llm: LLM, texts: list[list[int]]) -> torch.Tensor:
    """[2 x prompts, hidden_size]: last token's and mean, of length one."""
    kinds: tuple[Literal["last", "mean"], ...] = ("last", "mean")
    found = [llm.embed(texts, pooling=kind, use_tqdm=False) for kind in kinds]
    return torch.tensor([result.outputs.embedding for results in found for result in results])


def beam_error(llm: LLM, texts: list[list[int]]) -> float:
    """How far a beam's sum of logprobs is from the same answer's, scored anew as a prompt; the largest difference."""
    params = BeamSearchParams(beam_width=4, max_tokens=24, ignore_eos=True)
    answers = [s for found in llm.beam_search(texts, params, use_tqdm=False) for s in found.sequences]
    score = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    again = llm.generate([answer.tokens for answer in answers], score, use_tqdm=False)
    sums = [sum(scores(result)[-24:]) for result in again]
    return max(abs(one - answer.cum_logprob) for one, answer in zip(sums, answers, strict=True))


def scores(result: Any) -> list[float]:
    return [entry.logprob for entry in result.prompt_logprobs[1:]]


def ids(result: Any) -> list[int]:
    return [token for output in result.outputs for token in output.token_ids]


def agreement(first: list[list[int]], second: list[list[int]]) -> float:
    """Share of the requests whose tokens are all the same."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def bench(names: list[str], repeat: int, profiled: dict[str, int], options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each workload, and of the start."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(LLAMA_8B))
        start = time.perf_counter()
        llm = LLM(scratch, load_format="dummy", skip_tokenizer_init=True, max_model_len=8192, **options)
        out["options"], out["startup_s"] = options, time.perf_counter() - start
        out["phases"] = llm.info.startup
        out["memory"] = llm.info.memory
        out["device_free_gib_when_ready"] = free_gib()
        print("start", round(out["startup_s"], 2), llm.info.startup, llm.info.memory, flush=True)
        compilations = Compilations()
        run(llm, fixed(8, 64, 16, seed=99), "warm-up")
        for name in names:
            requests = WORKLOADS[name]()
            rows = [run(llm, requests, f"{name}-{i}") for i in range(repeat)]
            out[name] = sorted(rows, key=lambda row: row["s"])[len(rows) // 2] | {"all_s": [row["s"] for row in rows]}
            print(name, json.dumps(out[name]), flush=True)
        for name, count in profiled.items():
            requests = WORKLOADS[name]()[:count]
            out[f"profile {name}[:{count}]"] = split = profile(lambda r=requests, n=name: run(llm, r, f"profile-{n}"))
            print(name, json.dumps(split["ms"]), *(str(kernel) for kernel in split["kernels"]), sep="\n  ", flush=True)
        out["kernels_compiled_after_ready"] = compilations.count
        out["device_free_gib_at_end"] = free_gib()
        llm.close()
    gc.collect()
    torch.cuda.empty_cache()
    return out


def free_gib() -> float:
    """What the card has left, torch's cache counted as used."""
    return float(torch.cuda.mem_get_info()[0] / (1 << 30))


def run(llm: LLM, requests: list[BenchRequest], salt: str) -> dict[str, float]:
    """One repeat; its salt keeps it from finding another's cached prefixes."""
    before = llm.stats().num_steps
    seconds, results = run_workload(llm, requests, salt=salt)
    out_tokens = sum(len(result.outputs[0].token_ids) for result in results)
    in_tokens = sum(len(request.prompt_token_ids) for request in requests)
    return {
        "s": seconds,
        "out_tok": out_tokens,
        "in_tok": in_tokens,
        "out_tps": out_tokens / seconds,
        "total_tps": (in_tokens + out_tokens) / seconds,
        "steps": llm.stats().num_steps - before,
    }


class Compilations:
    """Counts the kernels that Triton compiles."""

    def __init__(self) -> None:
        import triton

        self.count = 0
        triton.knobs.runtime.jit_post_compile_hook = self._compiled

    def _compiled(self, **facts: Any) -> None:
        self.count += 1
        print("compiled:", facts.get("repr", "")[:120], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["check", "bench"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--profile", default="", help="workload:requests,..., run once more under the profiler")
    parser.add_argument("--quantization")
    parser.add_argument("--kv-cache-dtype")
    arguments = parser.parse_args()
    names = ("quantization", "kv_cache_dtype")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    profiled = {name: int(count) for name, _, count in (p.partition(":") for p in arguments.profile.split(",") if p)}
    record: dict[str, Any] = environment()
    record["command"] = "python benchmarks/gpu_check.py " + " ".join(sys.argv[1:])
    if arguments.only != "bench":
        record["check"] = check()
        print(json.dumps(record["check"]), flush=True)
    if arguments.only != "check":
        record["bench"] = bench([w for w in arguments.workloads.split(",") if w], arguments.repeat, profiled, options)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
