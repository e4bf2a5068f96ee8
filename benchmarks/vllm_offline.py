"""vLLM on the shared workloads, for `gpu_peers.py`: run with the Python and path that vLLM is installed for.

    python benchmarks/vllm_offline.py MODEL_FOLDER OUT.json REPEATS workload,workload [engine arguments as JSON]
        [--profile workload:requests,...]

vLLM's defaults; random weights, greedy, EOS ignored, prefix cache emptied before each repeat. Of an even number of
repeats the faster middle one counts here, and the slower in `gpu_check.py`. A profile is of this process, so vLLM is
to be run with VLLM_ENABLE_V1_MULTIPROCESSING=0 for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
sys.path.append(str(Path(__file__).parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("repeats", type=int)
    parser.add_argument("workloads")
    parser.add_argument("options", type=json.loads, nargs="?", default={})
    parser.add_argument("--profile", default="")
    arguments = parser.parse_args()
    start = time.time()
    import vllm
    from vllm import LLM, SamplingParams

    options = arguments.options
    engine = LLM(
        model=arguments.folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        max_model_len=8192,
        disable_log_stats=True,
        **options,
    )
    record: dict[str, object] = {"vllm": vllm.__version__, "options": options, "startup_s": time.time() - start}
    print("start", record["startup_s"], flush=True)

    from octavo.bench.profile import profile
    from octavo.bench.workloads import WORKLOADS, fixed

    def run(requests: list) -> dict[str, float]:
        prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        params = [
            SamplingParams(temperature=0.0, max_tokens=request.output_len, ignore_eos=True, detokenize=False)
            for request in requests
        ]
        begin = time.perf_counter()
        results = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        tokens = sum(len(result.outputs[0].token_ids) for result in results)
        return {"s": seconds, "out_tok": tokens, "out_tps": tokens / seconds}

    run(fixed(8, 64, 16, seed=99))
    for name in arguments.workloads.split(",") if arguments.repeats else []:
        rows = []
        for _ in range(arguments.repeats):
            engine.reset_prefix_cache()
            rows.append(run(WORKLOADS[name]()))
        median = sorted(rows, key=lambda row: row["s"])[(len(rows) - 1) // 2]
        record[name] = median | {"all_s": [row["s"] for row in rows]}
        print(name, json.dumps(record[name]), flush=True)
    for part in filter(None, arguments.profile.split(",")):
        name, _, count = part.partition(":")
        requests = WORKLOADS[name]()[: int(count)]
        engine.reset_prefix_cache()
        record[f"profile {part}"] = split = profile(lambda requests=requests: run(requests))
        print(part, json.dumps(split["ms"]), flush=True)
    arguments.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
