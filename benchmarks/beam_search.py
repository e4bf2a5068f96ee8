"""What beam search costs: time and pages against one greedy answer, and against as many independent requests.

    python benchmarks/beam_search.py --json benchmarks/results/beam-search-cpu.json

For each width k, on the same prompt and for the same number of tokens (the model's own end is ignored):

greedy       one answer, n = 1
beams        one search of width k
samples      n = k samples of one request, which share the prompt's pages
independent  k requests that share nothing (no prefix cache)

Pages are the most that were owned at one time. Every case runs in rounds; the fastest counts. The result says how busy
the machine was (load average): above its cores, times mean little.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from octavo import LLM, SamplingParams
from octavo.bench.record import environment, write_json
from octavo.request import EngineRequest

TEXT = "The history of printing begins long before the press, with seals, stamps and blocks cut from wood. " * 200
WIDTHS = (2, 4, 8)


def run(llm: LLM, requests: list[tuple[list[int], SamplingParams]]) -> tuple[float, int, int]:
    """Seconds from the first token to the end, steps, and the most pages that were owned.

    The prompt's own time is left out: it is the same for all but the independent ones.
    """
    inputs, engine = llm._frontend.inputs, llm._engine
    for handle, (prompt, params) in enumerate(requests, 1):
        request: EngineRequest = inputs.completion(prompt, params, request_id=str(handle), handle=handle)
        engine.add(request)
    started, steps, most, waiting = 0.0, 0, 0, len(requests)
    while engine.has_work:
        outputs = engine.step()
        if outputs is None:
            continue
        waiting -= len(outputs.started)
        if outputs.stats is not None:
            most = max(most, outputs.stats.num_pages - outputs.stats.num_free_pages)
        if not started and not waiting:
            started, steps = time.perf_counter(), 0
        steps += 1
    return time.perf_counter() - started, steps, most


def cases(prompt: list[int], tokens: int, width: int) -> dict[str, list[tuple[list[int], SamplingParams]]]:
    shared = {"max_tokens": tokens, "ignore_eos": True, "detokenize": False}
    sampled = {**shared, "temperature": 1.0}
    return {
        "beams": [(prompt, SamplingParams(n=width, temperature=0.0, use_beam_search=True, **shared))],
        "samples": [(prompt, SamplingParams(n=width, seed=1, **sampled))],
        "independent": [(prompt, SamplingParams(seed=seed, **sampled)) for seed in range(width)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="generated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with LLM(arguments.model, enable_prefix_caching=False, max_num_batched_tokens=4096) as llm:
        prompt = llm.tokenizer.encode(TEXT)[: arguments.prompt]
        one = SamplingParams(temperature=0.0, max_tokens=arguments.tokens, ignore_eos=True, detokenize=False)
        plans = {("greedy", 1): [(prompt, one)]}
        for width in WIDTHS:
            plans |= {(name, width): case for name, case in cases(prompt, arguments.tokens, width).items()}
        runs = {key: [] for key in plans}
        for _ in range(arguments.rounds + 1):
            for key, plan in plans.items():
                runs[key].append(run(llm, plan))
        rows = []
        for (name, width), found in runs.items():
            seconds, steps, pages = min(found[1:])
            rows.append({"case": name, "width": width, "seconds": seconds, "steps": steps, "pages": pages})
        info = llm.info
    greedy = rows[0]
    print("case         width | ms a token | x greedy | pages | x greedy")
    for row in rows:
        row["ms_per_token"] = row["seconds"] / arguments.tokens * 1000
        row["times_greedy"] = row["seconds"] / greedy["seconds"]
        print(
            f"{row['case']:12} {row['width']:5} | {row['ms_per_token']:10.2f} | {row['times_greedy']:8.2f} | "
            f"{row['pages']:5} | {row['pages'] / greedy['pages']:8.2f}"
        )
    if arguments.json:
        record = environment() | {"command": shlex.join(["python", *sys.argv]), "load": os.getloadavg()[0]}
        sizes = {"prompt_tokens": len(prompt), "tokens": arguments.tokens, "page_size": info.page_size}
        write_json(
            arguments.json, {**record, "model": info.model, "quantization": info.quantization, **sizes, "rows": rows}
        )


if __name__ == "__main__":
    main()
