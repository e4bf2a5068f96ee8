"""Attention of one layer over shared pages on a GPU: right against float64, then timed with and without sharing.

    python benchmarks/gpu_shared_prefix.py --json OUT.json [--only attention,engine] [--tune]

Llama 3.1 8B's shape (32 query heads, 8 kv heads of 128, pages of 64). Times are of one layer's attention in a CUDA
graph over several layers' caches, more memory than the L2 cache holds; the plans, made once a step, are timed apart.
`floor_us` is the time that reading every page once takes at 3 TB/s. `engine` compares the texts of a small random model
with and without sharing, and counts the steps that shared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from octavo import LLM, BeamSearchParams, SamplingParams
from octavo.bench.record import environment
from octavo.kernels.triton.launch import use_pdl
from octavo.kernels.triton.paged_decode import PagedDecode, decode_tuning
from octavo.kernels.triton.shared_prefix import SharedPrefix, pack_groups, shared_prefix_tuning
from octavo.plan import StepPlan
from octavo.runner.shared_prefix import SharedPages
from tests.tiny_models import make_tiny_llama

KV_HEADS, GROUP, DIM, PAGE = 8, 4, 128, 64
SHAPE = {"num_kv_heads": KV_HEADS, "group": GROUP, "head_dim": DIM, "page_size": PAGE}
TOKEN_BYTES = KV_HEADS * DIM * 2 * 2  # of bf16 keys and values, in one layer
FLOOR_TBS = 3.0
DEVICE = torch.device("cuda")


class Shape(NamedTuple):
    groups: int
    members: int
    shared: int
    tail: int  # on average; from half of it to one and a half


SHAPES = (Shape(16, 32, 2048, 192), Shape(1, 256, 1024, 128), Shape(64, 8, 512, 256), Shape(1, 8, 8192, 64))
VARIANTS: dict[str, dict[str, int]] = {
    "m64x264": {"block_m": 64, "num_warps": 4, "num_programs": 264},
    "m64x264s3": {"block_m": 64, "num_warps": 4, "num_programs": 264, "num_stages": 3},
    "m64x264share16": {"block_m": 64, "num_warps": 4, "num_programs": 264, "min_share": 16},
    "m64x132": {"block_m": 64, "num_warps": 4, "num_programs": 132},
    "m128x132": {"block_m": 128, "num_warps": 8, "num_programs": 132},
    "m128x132s3": {"block_m": 128, "num_warps": 8, "num_programs": 132, "num_stages": 3},
    "m32x264": {"block_m": 32, "num_warps": 4, "num_programs": 264},
}


class Batch:
    """Random queries and caches; the members of a group are spread over the batch."""

    def __init__(self, shape: Shape):
        self.shape, rows = shape, shape.groups * shape.members
        generator = np.random.default_rng(0)
        tails = generator.integers(shape.tail // 2, shape.tail * 3 // 2 + 1, rows)
        self.lens = shape.shared + tails
        prefix, counts = shape.shared // PAGE, -(-tails // PAGE)
        pages = generator.permutation(shape.groups * prefix + int(counts.sum())).astype(np.int32)
        self.num_pages = len(pages)
        table = np.zeros((rows, prefix + int(counts.max())), np.int32)
        at = shape.groups * prefix
        for row in range(rows):
            group = row % shape.groups
            table[row, :prefix] = pages[group * prefix : (group + 1) * prefix]
            table[row, prefix : prefix + counts[row]] = pages[at : at + counts[row]]
            at += counts[row]
        self.groups = [np.arange(g, rows, shape.groups, dtype=np.int32) for g in range(shape.groups)]
        self.table = torch.from_numpy(table).to(DEVICE)
        self.seq_lens = torch.from_numpy(self.lens.astype(np.int32)).to(DEVICE)
        self.starts = torch.arange(rows + 1, dtype=torch.int32, device=DEVICE)
        self.q = torch.randn(rows, KV_HEADS * GROUP, DIM, device=DEVICE, dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        layers = max(2, min(8, (1 << 30) // (self.num_pages * PAGE * TOKEN_BYTES)))
        size = (self.num_pages, KV_HEADS, PAGE, DIM)
        self.kv = [tuple(uniform(size) for _ in range(2)) for _ in range(layers)]

    @property
    def bytes_once(self) -> int:
        """Of all keys and values that are different."""
        shape = self.shape
        tails = int(self.lens.sum()) - len(self.lens) * shape.shared
        return (shape.groups * shape.shared + tails) * TOKEN_BYTES

    def where(self) -> tuple[torch.Tensor, ...]:
        return self.table, self.seq_lens, self.starts

    def error(self) -> float:
        """Largest relative error of some rows of `out`, for the first layer's caches, against float64."""
        worst, last = 0.0, len(self.lens) - 1
        for row in sorted({0, 1, last // 2, last - 1, last}):
            n = int(self.lens[row])
            pages = self.table[row, : -(-n // PAGE)].long()
            keys, values = (
                cache[pages].double().transpose(0, 1).flatten(1, 2)[:, :n].repeat_interleave(GROUP, 0)
                for cache in self.kv[0]
            )
            scores = torch.einsum("hd,hnd->hn", self.q[row].double(), keys) * DIM**-0.5
            expected = torch.einsum("hn,hnd->hd", scores.softmax(-1), values)
            error = float((self.out[row].double() - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))
        return worst


def uniform(size: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(size, device=DEVICE, dtype=torch.bfloat16).uniform_(-1.7, 1.7)


def graph_us(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Microseconds of one call: the median replay of a graph of all calls."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for i in range(replays + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return sorted(times)[replays // 2] * 1e3 / len(calls)


def make_decode(rows: int) -> PagedDecode:
    return PagedDecode(**SHAPE, max_rows=rows, device=DEVICE, **decode_tuning(rows))


def measure_apart(batch: Batch) -> dict[str, Any]:
    decode = make_decode(len(batch.lens))
    decode.plan(batch.seq_lens, batch.starts)
    calls = [
        lambda kv=kv: decode(batch.q, *kv, *batch.where(), DIM**-0.5, batch.out, pdl=use_pdl(DEVICE)) for kv in batch.kv
    ]
    batch.out.fill_(float("nan"))
    calls[0]()
    return {"error": batch.error(), "us": graph_us(calls)}


def measure_shared(batch: Batch, options: dict[str, int], *, grouped: bool = True) -> dict[str, Any]:
    """Without `grouped`, what the second kernel costs a step that has no groups."""
    rows, pdl = len(batch.lens), use_pdl(DEVICE)
    decode = make_decode(rows)
    shared = SharedPrefix(**SHAPE, max_rows=rows, device=DEVICE, **options)
    packed = np.zeros(4 * rows + 1, np.int32)
    groups = batch.groups if grouped else []
    members = np.concatenate([*groups, np.empty(0, np.int32)]).astype(np.int32)
    counts = np.array([len(group) for group in groups], np.int32)
    pack_groups(packed, members, counts, np.full(len(groups), batch.shape.shared, np.int32), shared.members_per_tile)
    shared.groups.copy_(torch.from_numpy(packed))

    def plan() -> None:
        shared.plan()
        decode.plan(batch.seq_lens, batch.starts, shared.state[0])

    def front(kv: tuple[torch.Tensor, ...]) -> None:
        shared(batch.q, *kv, batch.table, DIM**-0.5, pdl=pdl)

    def tails(kv: tuple[torch.Tensor, ...]) -> None:
        decode(batch.q, *kv, *batch.where(), DIM**-0.5, batch.out, shared=shared.state, pdl=pdl)

    def both(kv: tuple[torch.Tensor, ...]) -> None:
        front(kv)
        tails(kv)

    plan()
    torch.cuda.synchronize()
    batch.out.fill_(float("nan"))
    both(batch.kv[0])
    result: dict[str, Any] = {"error": batch.error()}
    result["us"] = graph_us([lambda kv=kv: both(kv) for kv in batch.kv])
    result["shared_us"] = graph_us([lambda kv=kv: front(kv) for kv in batch.kv])
    result["tails_us"] = graph_us([lambda kv=kv: tails(kv) for kv in batch.kv])
    result["plan_us"] = graph_us([plan] * 4)
    return result


def measure(shape: Shape, variants: dict[str, dict[str, int]]) -> dict[str, Any]:
    batch = Batch(shape)
    result: dict[str, Any] = shape._asdict() | {
        "floor_us": batch.bytes_once / FLOOR_TBS / 1e6,
        "apart_floor_us": int(batch.lens.sum()) * TOKEN_BYTES / FLOOR_TBS / 1e6,
        "apart": measure_apart(batch),
        "no_groups": measure_shared(batch, shared_prefix_tuning(), grouped=False),
        "shared": {name: measure_shared(batch, options) for name, options in variants.items()},
    }
    result["speedup"] = result["apart"]["us"] / min(found["us"] for found in result["shared"].values())
    print(json.dumps(result), flush=True)
    return result


def engine() -> dict[str, Any]:
    """Prompts of two prefixes, samples and beams, with sharing and without; in bfloat16 some texts part."""
    small = {
        "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 2000, "max_position_embeddings": 4096,
    }  # fmt: skip
    generator = np.random.default_rng(1)
    prefixes = [generator.integers(0, 2000, size).tolist() for size in (2048, 1700)]
    prompts = [prefixes[i % 2] + generator.integers(0, 2000, 3 + i).tolist() for i in range(48)]
    params = [SamplingParams(temperature=0, max_tokens=24 + i % 9, ignore_eos=True) for i in range(48)]
    texts: dict[bool, list[list[int]]] = {}
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_tiny_llama(Path(scratch) / "small", tokenizer=False, **small)
        for share in (False, True):
            steps: list[bool] = []
            with counted(steps), LLM(
                str(folder), device="cuda", skip_tokenizer_init=True, max_num_seqs=96, num_gpu_blocks_override=4000,
                shared_prefix_attention=share,
            ) as llm:  # fmt: skip
                llm.generate([[*prefix, 5] for prefix in prefixes], SamplingParams(max_tokens=1), use_tqdm=False)
                found = [result.outputs[0] for result in llm.generate(prompts, params, use_tqdm=False)]
                texts[share] = [output.token_ids for output in found]
                beams = BeamSearchParams(beam_width=8, max_tokens=16, ignore_eos=True)
                llm.beam_search(prompts[:4], beams, use_tqdm=False)
                llm.generate(prompts[:4], SamplingParams(n=16, seed=1, max_tokens=16, ignore_eos=True), use_tqdm=False)
                stats = llm.stats()
            out[f"steps_shared_{share}".lower()], out[f"steps_{share}".lower()] = sum(steps), len(steps)
            out[f"pages_free_at_end_{share}".lower()] = stats.num_free_pages == stats.num_pages
    pairs = list(zip(texts[False], texts[True], strict=True))
    out["same_texts"] = sum(a == b for a, b in pairs) / len(pairs)
    out["same_first_8_tokens"] = sum(a[:8] == b[:8] for a, b in pairs) / len(pairs)
    print(json.dumps(out), flush=True)
    return out


@contextlib.contextmanager
def counted(steps: list[bool]) -> Iterator[None]:
    """Notes of each step whether it shared."""
    begin = SharedPages.begin

    def noted(self: SharedPages, plan: StepPlan, slot: int) -> bool:
        steps.append(begin(self, plan, slot))
        return steps[-1]

    SharedPages.begin = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        SharedPages.begin = begin  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tune", action="store_true", help="time every variant, not only the default")
    parser.add_argument("--only", default="attention,engine")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    record = environment() | {"command": "python benchmarks/gpu_shared_prefix.py " + " ".join(sys.argv[1:])}
    variants = VARIANTS if arguments.tune else {"default": shared_prefix_tuning()}
    worst = 0.0
    for name in arguments.only.split(","):
        if name == "attention":
            record[name] = [measure(shape, variants) for shape in SHAPES]
            worst = max(found["error"] for case in record[name] for found in case["shared"].values())
        else:
            record[name] = engine()
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if worst < 1e-2 else 1)


if __name__ == "__main__":
    main()
