"""What a JSON schema costs: tokens a second of 16 streams with one, against the same 16 without.

    python benchmarks/structured_output.py [--streams 16] [--tokens 64] [--repeats 3] [--out FILE]

Both sides generate the same number of tokens; with the schema, an array long enough never to end. Sides take
turns, and what counts is the median of the turns' ratios, as the machine may be shared. Logprobs switch jump-ahead off.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.bench.record import environment

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "mail": {"type": "string"}},
    "required": ["name", "age", "mail"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}


def tokens_per_second(llm: LLM, streams: int, tokens: int, spec: StructuredOutputs | None, drawn: bool) -> float:
    """Generated tokens a second, prompts included in the time. `drawn`: logprobs, so that nothing is jumped over."""
    params = [
        SamplingParams(
            temperature=0.8,
            seed=i,
            max_tokens=tokens,
            ignore_eos=True,
            structured_outputs=spec,
            logprobs=0 if drawn else None,
        )
        for i in range(streams)
    ]
    prompts = [f"List {i + 3} people as JSON.\n" for i in range(streams)]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    taken = time.perf_counter() - start
    return sum(len(sample.token_ids) for each in outputs for sample in each.outputs) / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--tokenizer", help="default: the model's")
    parser.add_argument("--load-format", default="auto", help="dummy for random weights, where only time counts")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/structured-output-cpu.json"))
    options = parser.parse_args()
    spec = StructuredOutputs(json=SCHEMA)
    sides: dict[str, tuple[StructuredOutputs | None, bool]] = {
        "free": (None, False),
        "schema": (spec, False),
        "free, logprobs": (None, True),
        "schema, logprobs (no jump-ahead)": (spec, True),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    with LLM(options.model, tokenizer=options.tokenizer, load_format=options.load_format) as llm:
        for each, drawn in sides.values():
            tokens_per_second(llm, options.streams, options.tokens, each, drawn)  # compiles and records
        for _ in range(options.repeats):
            for name, (each, drawn) in sides.items():
                rates[name].append(round(tokens_per_second(llm, options.streams, options.tokens, each, drawn), 1))
                print(name, rates[name][-1], flush=True)
        jumped = llm.stats().jump_tokens

    def cost(guided: str, free: str) -> float:
        return round(1 - statistics.median(a / b for a, b in zip(rates[guided], rates[free], strict=True)), 4)

    report: dict[str, Any] = {
        "model": options.model,
        **environment(),
        "command": shlex.join(["python", *sys.argv]),
        "streams": options.streams,
        "tokens": options.tokens,
        "tokens_per_second": rates,
        "cost": cost("schema", "free"),
        "cost_without_jump_ahead": cost("schema, logprobs (no jump-ahead)", "free, logprobs"),
        "jump_tokens": jumped,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
