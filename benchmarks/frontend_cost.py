"""What text costs beside the model: tokenizer, chat template, detokenizer, output processing. One core, one process.

    python benchmarks/frontend_cost.py              # about half a minute; writes benchmarks/results/frontend_cost.json

Each number is the least of several repetitions, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from octavo.bench.record import environment, write_json
from octavo.config import EngineConfig
from octavo.frontend.detokenizer import detokenizer
from octavo.frontend.inputs import InputProcessor
from octavo.frontend.outputs import OutputProcessor
from octavo.frontend.stop_strings import StopChecker, stop_automaton
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import EngineRequest, SampleLogprobs, SamplingParams, StepOutputs, TokenLogprobs
from octavo.weights.gguf import GGUFFile
from octavo.weights.resolve import resolve

RESULT = Path(__file__).parent / "results" / "frontend_cost.json"
REPEATS = 7
STREAMS, STEPS = 256, 100
TEXT = (
    "The history of printing begins in the East, where seals and later wooden blocks were inked by hand. In 1450 a "
    "goldsmith in Mainz cast letters of metal, and within 50 years some 20,000,000 volumes had been printed – naïve "
    "estimates, says one café owner 😀, but not far off.\n\ndef fold(sheet):\n    return [half for half in sheet]\n"
)
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "How many leaves has an octavo?"},
    {"role": "assistant", "content": "Eight leaves, so sixteen pages."},
    {"role": "user", "content": "And a quarto?"},
]


def least(run: Callable[[], Any], per: int = 1) -> float:
    """Least seconds of a run, divided by what it does."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / per


def detokenizing(tokenizer: Tokenizer, ids: list[int]) -> dict[str, float]:
    """Microseconds a token."""
    texts = [tokenizer.texts[token_id] or "" for token_id in ids]
    automaton = stop_automaton(("\nUser:", "</s>"))

    def push() -> None:
        one = detokenizer(tokenizer).push
        for token_id in ids:
            one(token_id)

    def library() -> None:
        one, backend = DecodeStream(skip_special_tokens=True).step, tokenizer.backend
        for token_id in ids:
            one(backend, token_id)

    def stop() -> None:
        one = StopChecker(automaton).feed
        for text in texts:
            one(text)

    return {
        "detokenizer": least(push, len(ids)) * 1e6,
        "tokenizers.DecodeStream": least(library, len(ids)) * 1e6,
        "decode at once": least(lambda: tokenizer.decode(ids), len(ids)) * 1e6,
        "stop strings, two": least(stop, len(ids)) * 1e6,
    }


def processing(tokenizer: Tokenizer, ids: list[int], *, scored: bool = False, **params: Any) -> float:
    """Microseconds a token of `OutputProcessor.process`, detokenizing included, with 256 streams."""
    handles = list(range(STREAMS))
    steps = []
    for step in range(STEPS):
        tokens = [ids[(handle * 7 + step) % len(ids)] for handle in handles]
        entries = [TokenLogprobs(token, -1.0, 1, [token], [-1.0]) for token in tokens]
        rows = [SampleLogprobs(handle, 0, entry) for handle, entry in zip(handles, entries, strict=True)]
        steps.append(StepOutputs(handles, [0] * STREAMS, tokens, logprobs=rows if scored else []))
    best = float("inf")
    for _ in range(REPEATS):
        made = OutputProcessor(tokenizer)
        for handle in handles:
            made.add(
                EngineRequest(
                    handle=handle,
                    request_id=str(handle),
                    prompt_token_ids=[5],
                    params=SamplingParams(max_tokens=STEPS + 1, seed=0, logprobs=1 if scored else None, **params),
                )
            )
        start = time.perf_counter()
        for outputs in steps:
            made.process(outputs)
        best = min(best, time.perf_counter() - start)
    return best / STREAMS / STEPS * 1e6


def requests(tokenizer: Tokenizer, text: str) -> dict[str, float]:
    """Microseconds a request of `InputProcessor`."""
    made = InputProcessor(tokenizer, vocab_size=tokenizer.vocab_size, max_model_len=8192)
    params = SamplingParams(max_tokens=64)
    forged = [*MESSAGES, {"role": "user", "content": "<b>What</b> is <|im_end|>?"}]
    names: dict[str, Any] = {"request_id": "r", "handle": 1}

    def many(run: Callable[[], Any]) -> float:
        return least(lambda: [run() for _ in range(100)], 100) * 1e6

    return {
        "completion, 40 characters": many(lambda: made.completion(text[:40], params, **names)),
        "completion, 4,000 characters": many(lambda: made.completion(text[:4000], params, **names)),
        "chat, 4 messages": many(lambda: made.chat(MESSAGES, params, **names)),
        "chat, 5 messages, one with markup and a forged control token": many(
            lambda: made.chat(forged, params, **names)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EngineConfig().model.model)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    path = resolve(arguments.model)

    def load() -> Tokenizer:
        with GGUFFile(path) as gguf:
            return Tokenizer.from_gguf(gguf)

    load_seconds, tokenizer = least(load), load()
    text = TEXT * 40
    ids = tokenizer.encode(text)
    result = {
        "tokenizer_load_s": load_seconds,
        "encode_tokens_per_s": 1 / least(lambda: tokenizer.encode(text), len(ids)),
        "detokenize_us_per_token": detokenizing(tokenizer, ids),
        "process_us_per_token": {
            "plain": processing(tokenizer, ids),
            "two stop strings": processing(tokenizer, ids, stop=("\nUser:", "</s>")),
            "logprobs": processing(tokenizer, ids, scored=True),
        },
        "request_us": requests(tokenizer, text),
        "environment": environment() | {"command": "python benchmarks/frontend_cost.py"},
    }
    write_json(arguments.json, result)
    for name, value in result.items():
        if name != "environment":
            print(name, {k: round(v, 2) for k, v in value.items()} if isinstance(value, dict) else round(value, 3))


if __name__ == "__main__":
    main()
