"""Octavo against llama.cpp: the same GGUF file, the same cores, one run.

    python benchmarks/llama_cpp.py                  # about three minutes; needs pip install 'octavo[peers,bench]'

Each engine runs in processes of its own that are pinned to the same cores, the two in turn, several times; medians
count. One process of each measures one stream (start to first token, decode, prefill, peak memory), another 16 streams.
Decode speed is (tokens - 1) / (time from first to last token), greedy, EOS ignored. Prefill is prompt tokens over the
time to the first token with nothing cached; llama.cpp's time for it is its own (it leaves sampling and text out), ours
is the whole call's. 16 streams are all tokens over wall time, prompts included; llama.cpp serves them from 16 slots
with its continuous batching.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from octavo.bench.record import environment
from octavo.bench.workloads import fixed

ROOT = Path(__file__).resolve().parent.parent
STORY = "Once upon a time, there was a little"
DECODE_TOKENS = 128
STREAMS = 16
STREAM_TOKENS = 64
PREFILL_LENGTHS = (600, 1500)
VOCAB_SIZE = 49_152
TOPICS = (
    "rivers", "bread", "the moon", "bridges", "violins", "winter", "ants", "maps",
    "glass", "tea", "clocks", "forests", "the sea", "chess", "paper", "volcanoes",
)  # fmt: skip
MEASURES = {
    "decode_1": "one stream, decode, tok/s",
    "decode_16": "16 streams, in all, tok/s",
    "prefill_600": "prefill, 600 tokens, tok/s",
    "prefill_1500": "prefill, 1,500 tokens, tok/s",
    "first_token_s": "start to first token, s",
    "peak_rss_mib": "peak memory, MiB",
}
LESS_IS_BETTER = ("first_token_s", "peak_rss_mib")
WORKER_SECONDS = 200


class Octavo:
    """`octavo.llm.LLM` in this process."""

    def __init__(self, model: str, threads: int, streams: int):
        from octavo.llm import LLM

        self._llm = LLM(model, threads=threads, max_num_seqs=max(streams, 4))

    def decode(self, prompt: str, count: int) -> tuple[float, str]:
        """Tokens a second after the first, and the text."""
        from octavo.request import SamplingParams

        times, text = [], ""
        for output in self._llm.stream(prompt, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)):
            times.append((time.perf_counter(), len(output.outputs[0].token_ids)))
            text = output.outputs[0].text
        (start, first), (end, last) = times[0], times[-1]
        return (last - first) / (end - start) if last > first else 0.0, text

    def decode_many(self, prompts: list[str], count: int) -> float:
        """Tokens a second of all prompts at once."""
        from octavo.request import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        start = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False, cache_salt=str(time.perf_counter_ns()))
        seconds = time.perf_counter() - start
        return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds

    def prefill(self, ids: list[int]) -> float:
        """Prompt tokens a second."""
        from octavo.request import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        start = time.perf_counter()
        self._llm.generate([ids], params, use_tqdm=False, cache_salt=str(time.perf_counter_ns()))
        return len(ids) / (time.perf_counter() - start)

    def close(self) -> None:
        """Free the model."""
        self._llm.close()


class LlamaCpp:
    """llama.cpp's server in this process, called directly: no HTTP on its side either."""

    def __init__(self, model: str, threads: int, streams: int):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = 4096 if streams == 1 else 512 * streams
        params.n_parallel = streams
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)

    def _complete(self, prompt: str | list[int], count: int) -> dict[str, Any]:
        body = {
            "prompt": prompt, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
        }  # fmt: skip
        reply = self._server.handle_completions(body)
        result: dict[str, Any] = reply if isinstance(reply, dict) else json.loads(reply)
        if "timings" not in result:
            raise RuntimeError(f"llama.cpp failed: {result}")
        return result

    def decode(self, prompt: str, count: int) -> tuple[float, str]:
        """Tokens a second after the first, and the text."""
        result = self._complete(prompt, count)
        timings = result["timings"]
        return (timings["predicted_n"] - 1) * 1e3 / max(timings["predicted_ms"], 1e-3), result["choices"][0]["text"]

    def decode_many(self, prompts: list[str], count: int) -> float:
        """Tokens a second of all prompts at once, one thread for each."""
        results: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda prompt=prompt: results.append(self._complete(prompt, count)))
            for prompt in prompts
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        if len(results) != len(prompts):
            raise RuntimeError("a stream of llama.cpp failed")
        return sum(int(result["timings"]["predicted_n"]) for result in results) / seconds

    def prefill(self, ids: list[int]) -> float:
        """Prompt tokens a second, by llama.cpp's own clock."""
        timings = self._complete(ids, 1)["timings"]
        return float(timings["prompt_n"]) * 1e3 / float(timings["prompt_ms"])

    def close(self) -> None:
        """Nothing to free before the process ends."""


ENGINES = {"octavo": Octavo, "llama.cpp": LlamaCpp}


def work(engine: str, model: str, threads: int, streams: int, spawned: float) -> dict[str, Any]:
    """Measure one engine in this process. `spawned` is the time.time() at which the parent started it."""
    runner = ENGINES[engine](model, threads, streams)
    runner.decode(STORY, 1)
    found: dict[str, Any] = {"first_token_s": time.time() - spawned}
    if streams == 1:
        runner.decode(STORY, 16)
        rates = [runner.decode(STORY, DECODE_TOKENS) for _ in range(2)]
        found["decode_1"] = max(rate for rate, _ in rates)
        found["text"] = rates[0][1][:160]
        for length in PREFILL_LENGTHS:
            ids = fixed(1, length, 1, vocab_size=VOCAB_SIZE)[0].prompt_token_ids
            found[f"prefill_{length}"] = runner.prefill(ids)
        found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    else:
        prompts = [f"A short essay about {topic}. When people think of {topic}, they" for topic in TOPICS]
        runner.decode_many(prompts, 8)
        found["decode_16"] = runner.decode_many(prompts, STREAM_TOKENS)
    runner.close()
    return found


def spawn(engine: str, model: str, threads: int, streams: int) -> dict[str, Any]:
    """Measure one engine in a process of its own, which inherits this one's cores."""
    command = [sys.executable, __file__, "--worker", engine, "--model", model, "--threads", str(threads)]
    command += ["--streams", str(streams), "--spawned", repr(time.time())]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WORKER_SECONDS, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{engine} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def compare(model: str, threads: int, repeat: int) -> dict[str, Any]:
    """All measurements, the engines in turn, and their medians."""
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    for index in range(repeat):
        order = list(ENGINES) if index % 2 == 0 else list(reversed(ENGINES))
        merged: dict[str, dict[str, Any]] = {engine: {} for engine in ENGINES}
        for streams in (STREAMS, 1):
            for engine in order:
                merged[engine] |= spawn(engine, model, threads, streams)  # one stream last: its start counts
        for engine, found in merged.items():
            runs[engine].append(found)
            shown = ", ".join(f"{name} {found[name]:.1f}" for name in MEASURES)
            print(f"run {index + 1} of {repeat}, {engine}: {shown}", file=sys.stderr, flush=True)
    medians = {
        engine: {name: statistics.median(found[name] for found in each) for name in MEASURES}
        for engine, each in runs.items()
    }
    return {"medians": medians, "runs": runs}


def ratio(medians: dict[str, dict[str, float]], name: str) -> float:
    """Octavo's figure over llama.cpp's."""
    return medians["octavo"][name] / medians["llama.cpp"][name]


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, with what it was meant to show."""
    medians = result["medians"]
    lines = [
        f"| {result['cpu']['model']}, {result['threads']} cores | Octavo | llama.cpp | Octavo / llama.cpp |",
        "|---|---|---|---|",
    ]
    for name, label in MEASURES.items():
        values = [medians[engine][name] for engine in ENGINES]
        digits = 2 if name == "first_token_s" else 0
        note = " (less is better)" if name in LESS_IS_BETTER else ""
        shown = " | ".join(f"{value:,.{digits}f}" for value in values)
        lines.append(f"| {label}{note} | {shown} | {ratio(medians, name):.2f}× |")
    over_one = medians["octavo"]["decode_16"] / medians["llama.cpp"]["decode_1"]
    lines += ["", f"16 streams of Octavo make {over_one:.1f} times the tokens of llama.cpp's one stream."]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Two bars for each measure, with their values and the ratio."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {"octavo": "#2a6f97", "llama.cpp": "#b8b8b8"}
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(13, 3.4), constrained_layout=True)
    for axis, (name, label) in zip(axes, MEASURES.items(), strict=True):
        values = [result["medians"][engine][name] for engine in ENGINES]
        bars = axis.bar(list(ENGINES), values, color=[colors[engine] for engine in ENGINES], width=0.62)
        digits = 1 if name == "first_token_s" else 0
        axis.bar_label(bars, [f"{value:,.{digits}f}" for value in values], padding=2, fontsize=9)
        head, _, unit = label.rpartition(", ")
        note = " (less is better)" if name in LESS_IS_BETTER else ""
        axis.set_title(f"{head}\n{unit}{note}", fontsize=9)
        axis.set_xlabel(
            f"{ratio(result['medians'], name):.2f}×", fontsize=12, fontweight="bold", color=colors["octavo"]
        )
        axis.set_ylim(0, max(values) * 1.18)
        axis.set_yticks([])
        axis.tick_params(axis="x", length=0, labelsize=9)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"SmolLM2-135M-Instruct Q4_1, {result['threads']} cores of {result['cpu']['model']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_table(text: str, page: Path) -> None:
    """Put the table between the page's markers, if it has them."""
    begin, end = "<!-- llama-cpp:begin -->\n", "<!-- llama-cpp:end -->"
    content = page.read_text() if page.exists() else ""
    if begin in content and end in content:
        before, rest = content.split(begin, 1)
        page.write_text(before + begin + text + end + rest.split(end, 1)[1])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="GGUF file, or a name that Octavo resolves")
    parser.add_argument("--threads", type=int, default=2, help="cores to pin to, one thread on each")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/llama-cpp-cpu.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/llama-cpp-cpu.png")
    pages = [ROOT / "README.md", ROOT / "docs/performance.md"]
    parser.add_argument("--pages", type=Path, nargs="*", default=pages, help="pages that get the table")
    parser.add_argument("--redraw", action="store_true", help="only plot and tabulate an earlier --json")
    parser.add_argument("--worker", choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, then write JSON, plot and table."""
    options = parse_arguments()
    if options.worker:
        print(json.dumps(work(options.worker, options.model, options.threads, options.streams, options.spawned)))
        return
    if options.redraw:
        result = json.loads(options.json.read_text())
    else:
        model = options.model
        if not model.endswith(".gguf"):
            from octavo.weights.resolve import resolve

            model = str(resolve(model))
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        os.sched_setaffinity(0, cores)
        import xllamacpp

        result = {
            "benchmark": "llama.cpp on a CPU",
            **environment(),
            "command": "python benchmarks/llama_cpp.py",
            "peer": f"xllamacpp {getattr(xllamacpp, '__version__', '')}".strip(),
            "model_file": Path(model).name,
            "threads": len(cores),
            **compare(model, len(cores), options.repeat),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    text = table(result)
    for page in options.pages:
        write_table(text, page)
    plot(result, options.plot)
    print(text)


if __name__ == "__main__":
    main()
