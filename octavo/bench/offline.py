"""Throughput and latency of an engine in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from octavo.bench.metrics import spread
from octavo.bench.record import environment
from octavo.bench.workloads import BenchRequest, Workload, fit_vocabulary, fixed
from octavo.errors import ConfigError
from octavo.request import SamplingParams

if TYPE_CHECKING:
    from octavo.llm import LLM

_WARM_UP = {"count": 4, "input_len": 32, "output_len": 8}


def greedy(output_len: int) -> SamplingParams:
    """Exactly `output_len` tokens, the likeliest each time, without making text of them."""
    return SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)


def run_workload(llm: LLM, workload: Sequence[BenchRequest], *, salt: str) -> tuple[float, list[Any]]:
    """Run a workload and return its seconds and its outputs.

    Args:
        salt: separates this run's cached prefixes from all others', so that repeats find nothing of each other's.
    """
    prompts = [request.prompt_token_ids for request in workload]
    params = [greedy(request.output_len) for request in workload]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, cache_salt=salt)
    return time.perf_counter() - start, outputs


def check_fits(llm: LLM, workload: Sequence[BenchRequest]) -> None:
    """Raises ConfigError if a request is longer than the model's context as it is served."""
    longest = max(len(request.prompt_token_ids) + request.output_len for request in workload)
    if longest > llm.info.max_model_len:
        raise ConfigError(
            f"The workload's longest request takes {longest:,} tokens; the engine serves {llm.info.max_model_len:,}.",
            fix="Raise --max-model-len (and --kv-cache-memory-bytes), or choose another workload.",
            param="workload",
        )


def throughput(
    llm: LLM,
    name: str,
    workload: Workload,
    *,
    repeat: int = 1,
    on_repeat: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Run a workload `repeat` times and report tokens and requests a second.

    The headline numbers are of the fastest repeat; `runs` has all. Every repeat starts with nothing of its prompts in
    the prefix cache; requests of one repeat share prefixes as the engine's options let them.

    Returns:
        A result ready for JSON.

    Raises:
        ConfigError: a request does not fit the engine's context.
    """
    workload, mapped = fit_vocabulary(workload, llm.info.vocab_size)
    check_fits(llm, workload)
    _warm_up(llm)
    runs = []
    for index in range(repeat):
        seconds, outputs = run_workload(llm, workload, salt=f"repeat-{index}")
        runs.append(_run_numbers(workload, seconds, outputs))
        if on_repeat is not None:
            on_repeat(index, seconds)
    best = min(runs, key=lambda run: run["seconds"])
    return {
        "benchmark": "throughput",
        **environment(),
        "workload": name,
        "num_requests": len(workload),
        "ids_taken_modulo_vocabulary": mapped,
        "engine": _engine_facts(llm),
        **best,
        "runs": runs,
    }


def latency(
    llm: LLM, *, batch_size: int, input_len: int, output_len: int, warm_up: int, iterations: int
) -> dict[str, Any]:
    """Time one batch of equal requests, again and again.

    Returns:
        A result ready for JSON: `latency_s` is the spread of a batch's seconds, `per_token_ms` that divided by the
        output's length, `ttft_ms` of all requests.
    """
    size = llm.info.vocab_size
    batches = [
        fixed(batch_size, input_len, output_len, seed=index, vocab_size=size) for index in range(warm_up + iterations)
    ]
    check_fits(llm, batches[0])
    seconds, ttfts = [], []
    for index, batch in enumerate(batches):
        taken, outputs = run_workload(llm, batch, salt=f"iteration-{index}")
        if index >= warm_up:
            seconds.append(taken)
            ttfts += [output.metrics.time_to_first_token for output in outputs]
    return {
        "benchmark": "latency",
        **environment(),
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": output_len,
        "warm_up": warm_up,
        "iterations": iterations,
        "engine": _engine_facts(llm),
        "latency_s": spread(seconds),
        "per_token_ms": spread(seconds, scale=1e3 / output_len),
        "ttft_ms": spread(ttfts, scale=1e3),
        "raw_seconds": seconds,
    }


def _warm_up(llm: LLM) -> None:
    vocab_size = llm.info.vocab_size
    run_workload(llm, fixed(**_WARM_UP, seed=1, vocab_size=vocab_size), salt="warm-up")


def _run_numbers(workload: Sequence[BenchRequest], seconds: float, outputs: Sequence[Any]) -> dict[str, Any]:
    input_tokens = sum(len(request.prompt_token_ids) for request in workload)
    output_tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    return {
        "seconds": seconds,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": cached,
        "requests_per_s": len(workload) / seconds,
        "output_tokens_per_s": output_tokens / seconds,
        "total_tokens_per_s": (input_tokens + output_tokens) / seconds,
        "ttft_ms": spread([output.metrics.time_to_first_token for output in outputs], scale=1e3),
    }


def _engine_facts(llm: LLM) -> dict[str, Any]:
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(llm.info)
    return facts
