"""Minutes at a full pool, with aborts and preemption: python benchmarks/gpu_soak.py --json OUT.json [--minutes 10]

A small random model behind `AsyncLLM`, so that steps are many, in a pool that holds a third of what is asked for. As
requests end others come: some with several samples, beams, logprobs or a common beginning; a fifth is aborted,
in every phase. Every second memory of the host's processes and of the device is noted. The exit status is 1 if pages
are missing at the end, if memory has grown since the first quarter, or if one of the marked requests, which come again
and again in the batch-invariant mode, once got other tokens than alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_correctness import MODEL, make_model

from octavo import AsyncLLM, SamplingParams
from octavo.bench.record import environment

OPEN = 200
"""Requests at one time."""
MARKED = 8
HOST_SLACK_MIB, DEVICE_SLACK_MIB = 48, 64
PAGES, PAGE = 250, 64


def draw(rng: random.Random, shared: list[int]) -> tuple[list[int], SamplingParams]:
    prompt = (shared if rng.random() < 0.4 else []) + [rng.randrange(2, 4000) for _ in range(rng.randrange(1, 400))]
    kind = rng.random()
    params: dict[str, Any] = {"max_tokens": rng.randrange(1, 120), "ignore_eos": True, "seed": rng.randrange(1 << 30)}
    params["temperature"] = 0.0 if kind < 0.3 else 0.9
    if kind > 0.95:
        params |= {"use_beam_search": True, "n": 3, "temperature": 0.0}
    elif kind > 0.85:
        params["n"] = 3
    elif kind > 0.75:
        params["logprobs"] = 3
    elif kind > 0.65:
        params |= {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}
    return prompt, SamplingParams(**params)


class Soak:
    """The clients, and what they count."""

    def __init__(self, llm: AsyncLLM, until: float):
        self.llm, self.until = llm, until
        self.counts: Counter[str] = Counter()
        self.rng = random.Random(0)
        self.shared = [self.rng.randrange(2, 4000) for _ in range(200)]
        self.marked = [draw(random.Random(1000 + i), self.shared) for i in range(MARKED)]
        self.expected: list[list[list[int]]] = []

    async def tokens(self, prompt: list[int], params: SamplingParams, abort_after: int | None) -> list[list[int]]:
        found: list[list[int]] = []
        updates = 0
        async with aclosing(self.llm.generate(prompt, params)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                found = [list(sample.token_ids) for sample in output.outputs]
                updates += 1
                if abort_after is not None and updates > abort_after:
                    return []
        return found

    async def client(self) -> None:
        while time.monotonic() < self.until:
            kind = self.rng.random()
            if kind < 0.1:
                at = self.rng.randrange(MARKED)
                if await self.tokens(*self.marked[at], None) != self.expected[at]:
                    self.counts["wrong"] += 1
                self.counts["marked"] += 1
            elif kind < 0.2:  # aborted before it starts, or while its prompt is computed
                task = asyncio.create_task(self.tokens(*draw(self.rng, self.shared), None))
                await asyncio.sleep(self.rng.random() * 0.05)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.counts["aborted early"] += 1
            elif kind < 0.3:
                await self.tokens(*draw(self.rng, self.shared), self.rng.randrange(20))
                self.counts["aborted late"] += 1
            else:
                await self.tokens(*draw(self.rng, self.shared), None)
                self.counts["finished"] += 1

    async def watch(self, cuda: bool) -> list[dict[str, float]]:
        notes: list[dict[str, float]] = []
        own = psutil.Process()
        begin = time.monotonic()
        while time.monotonic() < self.until:
            processes = [own, *own.children(recursive=True)]
            note = {"s": time.monotonic() - begin, "host_mib": sum(p.memory_info().rss for p in processes) / 2**20}
            if cuda:
                free, total = torch.cuda.mem_get_info()
                note["device_mib"] = (total - free) / 2**20
            notes.append(note)
            await asyncio.sleep(1)
        return notes


async def run(minutes: float, device: str, folder: Path) -> dict[str, Any]:
    options = {"skip_tokenizer_init": True, "device": device, "max_num_seqs": 128, "num_gpu_blocks_override": PAGES}
    async with AsyncLLM(str(folder), block_size=PAGE, batch_invariant=True, **options) as llm:
        soak = Soak(llm, time.monotonic() + 60 * minutes)
        soak.expected = [await soak.tokens(*marked, None) for marked in soak.marked]
        soak.until = time.monotonic() + 60 * minutes
        clients = [asyncio.create_task(soak.client()) for _ in range(OPEN)]
        notes = await soak.watch(device == "cuda")
        await asyncio.gather(*clients)
        while llm.num_open:
            await asyncio.sleep(0.01)
        await soak.tokens([5, 6, 7], SamplingParams(max_tokens=2, ignore_eos=True), None)  # its end brings the counts
        stats = llm.stats
    rest = notes[len(notes) // 4 :]
    half, end = rest[: len(rest) // 2], rest[-max(1, len(rest) // 10) :]
    names = [name for name in notes[0] if name != "s"]
    grown = {name: max(n[name] for n in end) - max(n[name] for n in half) for name in names}
    result: dict[str, Any] = {
        "minutes": minutes,
        "counts": dict(soak.counts),
        "preemptions": stats.num_preemptions,
        "steps": stats.num_steps,
        "pages_missing": stats.num_pages - stats.num_free_pages,
        "grown_mib": grown,
        "notes": notes[:: max(1, len(notes) // 60)],
    }
    result["ok"] = (
        soak.counts["wrong"] == 0
        and soak.counts["marked"] > 0
        and stats.num_preemptions > 0
        and result["pages_missing"] == 0
        and grown["host_mib"] <= HOST_SLACK_MIB
        and grown.get("device_mib", 0) <= DEVICE_SLACK_MIB
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a smaller model, to try this")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        MODEL.update(hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model")
        result = asyncio.run(run(arguments.minutes, arguments.device, folder))
    record = environment() | {"command": "python benchmarks/gpu_soak.py " + " ".join(sys.argv[1:])} | result
    print(json.dumps({name: value for name, value in result.items() if name != "notes"}))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
