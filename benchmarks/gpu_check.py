"""Everything that needs a GPU, in one command: correctness of the engine on it, then the shared workloads.

    python benchmarks/gpu_check.py --json OUT.json [--only check|bench] [--repeat 3] [--workloads a,b]
        [--quantization fp8] [--kv-cache-dtype fp8] [--batch-invariant] [--profile workload:requests,...]
        [--real-model SmolLM2-135M-Instruct.Q4_1.gguf]

What is checked is in `gpu_correctness.py`, with a real model too if its file is named (`octavo pull` gets it); the exit
status is 1 if something does not hold. The workloads run Llama 3.1 8B's shape with random weights in bfloat16, with
defaults; times are whole `LLM.generate` calls, each with a salt of its own, so that none finds another's prefixes.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_correctness import check

from octavo import LLM
from octavo.bench.offline import run_workload
from octavo.bench.profile import profile
from octavo.bench.record import environment
from octavo.bench.workloads import WORKLOADS, BenchRequest, fixed
from octavo.engine.phases import process_age

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


def bench(names: list[str], repeat: int, profiled: dict[str, int], options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each workload, and of the start."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(LLAMA_8B))
        start = time.perf_counter()
        llm = LLM(scratch, load_format="dummy", skip_tokenizer_init=True, max_model_len=8192, **options)
        out["options"], out["startup_s"] = options, time.perf_counter() - start
        out["process_to_ready_s"] = process_age()
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
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--real-model", type=Path, help="SmolLM2's GGUF file; needs the package gguf")
    arguments = parser.parse_args()
    names = ("quantization", "kv_cache_dtype")
    options: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    options |= {"batch_invariant": True} if arguments.batch_invariant else {}
    profiled = {name: int(count) for name, _, count in (p.partition(":") for p in arguments.profile.split(",") if p)}
    record: dict[str, Any] = environment()
    record["command"] = "python benchmarks/gpu_check.py " + " ".join(sys.argv[1:])
    if arguments.only != "bench":
        record["check"] = check(arguments.real_model)
        print(json.dumps(record["check"]), flush=True)
    if arguments.only != "check":
        record["bench"] = bench([w for w in arguments.workloads.split(",") if w], arguments.repeat, profiled, options)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if record.get("check", {"ok": True})["ok"] else 1)


if __name__ == "__main__":
    main()
