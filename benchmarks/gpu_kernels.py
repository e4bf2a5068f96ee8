"""The Triton kernels on a GPU: right against float64, then timed inside CUDA graphs against torch and the floor.

    python benchmarks/gpu_kernels.py --json out.json [--only check,decode,extend,glue,layer,sample] [--tune]

Times are of one call, the median of replays of a graph that holds many calls over rotating buffers (more memory than
the L2 cache holds, as in a model's layers). `tbs` counts the bytes that must move, `tflops` the arithmetic needed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels_triton")]

from octavo.attention.fa3 import Fa3Extend, why_not  # noqa: E402
from octavo.kernels.triton.paged_decode import PagedDecode, decode_tuning  # noqa: E402
from octavo.kernels.triton.paged_extend import PagedExtend, plan_extend  # noqa: E402
from octavo.kernels.triton.prepare_step import pack_step, prepare_step, write_blocks  # noqa: E402
from octavo.kernels.triton.process_logits import SamplingTables, process_logits  # noqa: E402
from octavo.kernels.triton.rms_norm import add_rms_norm, rms_norm_fp8  # noqa: E402
from octavo.kernels.triton.rope_and_cache import rope_and_cache  # noqa: E402
from octavo.kernels.triton.sample import Sampler  # noqa: E402
from octavo.kernels.triton.silu_and_mul import silu_and_mul, silu_and_mul_fp8  # noqa: E402

HEADS, KV_HEADS, DIM, HIDDEN, INNER = 32, 8, 128, 4096, 14336
GROUP = HEADS // KV_HEADS
DEVICE = torch.device("cuda")
FLOOR_TBS = 3.0
FA3_US = {
    (1, 256): 10.3, (1, 1024): 11.2, (1, 4096): 15.0, (8, 1024): 19.9, (32, 1024): 55.2, (64, 1024): 102.5,
    (128, 512): 108.4, (256, 256): 117.7, (256, 1024): 371.4, (512, 512): 386.2, (16, 8192): 184.4,
}  # fmt: skip  # (batch, context) → microseconds a layer, the best of three page sizes, same card, 2026-11

Result = dict[str, Any]


def graph_time(calls: Sequence[Callable[[], object]], replays: int = 15) -> float:
    """Seconds of one call: the median over replays of one graph of all `calls`, in order."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * replays)]
    for i in range(replays):
        events[2 * i].record()
        graph.replay()
        events[2 * i + 1].record()
    torch.cuda.synchronize()
    times = sorted(events[2 * i].elapsed_time(events[2 * i + 1]) for i in range(replays))
    return times[replays // 2] / 1e3 / len(calls)


def rotate(
    make: Callable[[], Callable[[], object]], bytes_each: int, limit: int = 1 << 30
) -> list[Callable[[], object]]:
    """Calls over enough copies of the data to outgrow the cache, at least 16 calls."""
    copies = max(1, min(32, limit // max(1, bytes_each)))
    distinct = [make() for _ in range(copies)]
    return [distinct[i % copies] for i in range(max(16, copies))]


class Batch:
    """Random queries and caches of `layers` layers on shuffled pages; lengths and tables shared by the layers."""

    def __init__(self, lens: Sequence[int], query_lens: Sequence[int], page: int, layers: int, fp8: bool = False):
        counts = [-(-n // page) for n in lens]
        pages = sum(counts)
        order = torch.randperm(pages, dtype=torch.int32)
        table = torch.zeros(len(lens), max(counts), dtype=torch.int32)
        at = 0
        for r, count in enumerate(counts):
            table[r, :count] = order[at : at + count]
            at += count
        self.lens, self.query_lens = list(lens), list(query_lens)
        self.table, self.seq_lens = table.to(DEVICE), torch.tensor(lens, dtype=torch.int32, device=DEVICE)
        starts = torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32)
        self.starts, tokens = starts.to(DEVICE), int(starts[-1])
        dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
        shape = (pages, KV_HEADS, page, DIM)
        self.kv = [tuple(_random(shape, dtype) for _ in range(2)) for _ in range(layers)]
        self.scale = torch.full((KV_HEADS,), 0.5, device=DEVICE) if fp8 else None
        self.q = torch.randn(tokens, HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)

    def arguments(self, layer: int) -> tuple[torch.Tensor, ...]:
        return self.q, *self.kv[layer], self.table, self.seq_lens, self.starts

    def scales(self) -> dict[str, torch.Tensor | None]:
        return {"k_scale": self.scale, "v_scale": self.scale}

    def error(self, layer: int = 0, rows: int = 3) -> float:
        """Relative error of `out` for the first and last rows, against float64 on the device."""
        worst = 0.0
        for r in {*range(min(rows, len(self.lens))), len(self.lens) - 1}:
            n, q_len, start = self.lens[r], self.query_lens[r], int(self.starts[r])
            first = max(0, q_len - 256)  # the last queries see the most keys
            keys, values = (self._rows(cache, r, n) for cache in self.kv[layer])
            q = self.q[start + first : start + q_len].double()
            scores = torch.einsum("thd,hnd->htn", q, keys.repeat_interleave(GROUP, 0)) * DIM**-0.5
            position = torch.arange(n - q_len + first, n, device=DEVICE)[:, None]
            scores = scores.masked_fill(torch.arange(n, device=DEVICE)[None] > position, -float("inf"))
            expected = torch.einsum("htn,hnd->thd", scores.softmax(-1), values.repeat_interleave(GROUP, 0))
            actual = self.out[start + first : start + q_len].double()
            error = float((actual - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))
        return worst

    def _rows(self, cache: torch.Tensor, r: int, n: int) -> torch.Tensor:
        page = cache.shape[2]
        pages = self.table[r, : -(-n // page)].long()
        rows = cache.view(torch.uint8)[pages].view(cache.dtype).double().transpose(0, 1).flatten(1, 2)[:, :n]
        return rows if self.scale is None else rows * self.scale.double()[:, None, None]


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A third of the time of randn for caches of gigabytes: uniform in [-1.7, 1.7], variance 1."""
    if dtype == torch.float8_e4m3fn:
        return torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).uniform_(-1.7, 1.7).to(dtype)
    return torch.empty(shape, device=DEVICE, dtype=dtype).uniform_(-1.7, 1.7)


def layers_for(tokens: int, element: int) -> int:
    """Caches that together outgrow the L2 cache many times, up to the model's 32."""
    return max(2, min(32, (3 << 29) // (tokens * KV_HEADS * DIM * 2 * element)))


DECODE_VARIANTS: dict[str, dict[str, int]] = {
    "t64s5p396": {"tile": 64, "num_stages": 5, "num_programs": 396},
    "t64s7p264": {"tile": 64, "num_stages": 7, "num_programs": 264},
    "t64s7p132": {"tile": 64, "num_stages": 7, "num_programs": 132},
    "t32s7p528": {"tile": 32, "num_stages": 7, "num_programs": 528, "maxnreg": 128},
    "t32s7p264": {"tile": 32, "num_stages": 7, "num_programs": 264},
    "t32s9p396": {"tile": 32, "num_stages": 9, "num_programs": 396},
    "t64s5p528": {"tile": 64, "num_stages": 5, "num_programs": 528, "maxnreg": 128},
}


def bench_decode(tune: bool, page: int = 64) -> list[Result]:
    """One layer's decode attention by batch and context."""
    results: list[Result] = []
    cases = [(fp8, b, c) for fp8 in (False, True) for b, c in FA3_US if not (fp8 and b * c > 1 << 18)]
    for fp8, batch, context in cases:
        data = Batch([context] * batch, [1] * batch, page, layers_for(batch * context, 1 if fp8 else 2), fp8)
        data_bytes = batch * context * KV_HEADS * DIM * 2 * (1 if fp8 else 2)
        for name, options in DECODE_VARIANTS.items() if tune else [("default", decode_tuning(batch, fp8))]:
            results.append(_decode_case(data, data_bytes, page, name, options) | {
                "batch": batch, "context": context, "kv": "fp8" if fp8 else "bf16", "fa3_us": FA3_US[batch, context],
            })  # fmt: skip
            print(json.dumps(results[-1]), flush=True)
        del data
    generator = torch.Generator().manual_seed(0)
    ragged = torch.randint(1, 2048, (64,), generator=generator).tolist()
    for name, lens, query in (("ragged", ragged, 1), ("verify4", [1024] * 32, 4), ("long", [32768], 1)):
        data = Batch(lens, [query] * len(lens), page, layers_for(sum(lens), 2))
        size = sum(lens) * KV_HEADS * DIM * 4
        results.append(
            _decode_case(data, size, page, name, {"max_query_len": query} | decode_tuning(len(lens)))
            | {"batch": len(lens)}
        )
        print(json.dumps(results[-1]), flush=True)
    return results


def _decode_case(data: Batch, data_bytes: int, page: int, name: str, options: dict[str, int]) -> Result:
    op = PagedDecode(
        num_kv_heads=KV_HEADS, group=GROUP, head_dim=DIM, page_size=page, max_rows=1024, device=DEVICE, **options
    )
    op.plan(data.seq_lens, data.starts)
    data.out.fill_(float("nan"))
    calls = [
        lambda layer=layer: op(*data.arguments(layer), DIM**-0.5, data.out, **data.scales())
        for layer in range(len(data.kv))
    ]
    calls[0]()
    error = data.error()
    calls *= -(-16 // len(calls))
    seconds = graph_time(calls)
    tbs = data_bytes / seconds / 1e12
    return {
        "op": "decode", "variant": name, "us": round(seconds * 1e6, 2), "tbs": round(tbs, 3),
        "of_floor": round(tbs / FLOOR_TBS, 3), "error": error,
    }  # fmt: skip


EXTEND_VARIANTS: dict[str, dict[str, Any]] = {
    "n64": {},
    "n64s7": {"num_stages": 7},
    "n128s3": {"block_n": 128, "num_stages": 3},
    "m64w4": {"block_m": 64, "num_warps": 4},
}


def bench_extend(tune: bool) -> list[Result]:
    """Prompt attention: whole prompts, and a chunk after a cached prefix."""
    results: list[Result] = []
    cases = {
        "4x4096": ([4096] * 4, [4096] * 4),
        "chunk512_at_7680": ([8192] * 4, [512] * 4),
        "16x512": ([512] * 16,) * 2,
        "32x128": ([128] * 32,) * 2,
        "128x32": ([32] * 128,) * 2,
        "chunk32_at_2048": ([2080] * 32, [32] * 32),
    }
    for (name, (lens, query_lens)), fp8 in itertools.product(cases.items(), (False, True)):
        for page in (64, 128):
            data = Batch(lens, query_lens, page, 2, fp8)
            pairs = sum(q * (n - q) + q * (q + 1) / 2 for n, q in zip(lens, query_lens, strict=True))
            variants = EXTEND_VARIANTS.items() if tune and not (fp8 and page == 64) else [("default", {})]
            for variant, options in variants:
                if options.get("block_n", 64) > page:
                    continue
                results.append(_extend_case(data, page, variant, options, 4 * pairs * HEADS * DIM) | {
                    "case": name, "kv": "fp8" if fp8 else "bf16", "page": page,
                })  # fmt: skip
                print(json.dumps(results[-1]), flush=True)
            if why_not(DEVICE, DIM, data.kv[0][0].dtype) is None:
                results.append(
                    _fa3_case(data, page, 4 * pairs * HEADS * DIM) | {"case": name, "kv": "bf16", "page": page}
                )
                print(json.dumps(results[-1]), flush=True)
    q, k, v = (torch.randn(4, HEADS, 4096, DIM, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        seconds = graph_time([lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)] * 4)
    results.append({"op": "cudnn", "case": "4x4096", "us": seconds * 1e6})
    print(json.dumps(results[-1]), flush=True)
    return results


def _extend_case(data: Batch, page: int, variant: str, options: dict[str, Any], flops: float) -> Result:
    op = PagedExtend(num_kv_heads=KV_HEADS, group=GROUP, head_dim=DIM, page_size=page, **options)
    lens, query_lens = (data.seq_lens.cpu().numpy(), data.starts.diff().cpu().numpy())
    tiles = torch.from_numpy(plan_extend(query_lens, lens - query_lens, op.tokens_per_tile)).to(DEVICE)
    data.out.fill_(float("nan"))
    calls = [
        lambda layer=layer: op(*data.arguments(layer), tiles, DIM**-0.5, data.out, **data.scales()) for layer in (0, 1)
    ]
    calls[0]()
    error = data.error()
    seconds = graph_time(calls * 4, replays=7)
    return {
        "op": "extend", "variant": variant, "us": round(seconds * 1e6, 1), "tflops": round(flops / seconds / 1e12, 1),
        "error": error,
    }  # fmt: skip


def _fa3_case(data: Batch, page: int, flops: float) -> Result:
    op = Fa3Extend(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, page_size=page)
    longest = max(data.query_lens)
    op.begin(data.starts, data.seq_lens, data.table, first_row=0, longest=longest, dtype=torch.bfloat16)
    data.out.fill_(float("nan"))
    calls = [lambda layer=layer: op(data.q, *data.kv[layer], DIM**-0.5, data.out) for layer in (0, 1)]
    calls[0]()
    error = data.error()
    seconds = graph_time(calls * 4, replays=7)
    return {
        "op": "extend", "variant": "fa3", "us": round(seconds * 1e6, 1), "tflops": round(flops / seconds / 1e12, 1),
        "error": error,
    }  # fmt: skip


def bench_glue() -> list[Result]:
    """Memory-bound ops against the same written in torch, and against the bytes they must move."""
    results: list[Result] = []
    for tokens in (1, 64, 256, 2048, 8192):
        for name, size, make, make_torch in _glue_ops(tokens):
            line = {"op": name, "tokens": tokens, "us": round(graph_time(rotate(make, size)) * 1e6, 2)}
            line["floor_us"] = round(size / FLOOR_TBS / 1e6, 2)
            if make_torch is not None:
                line["torch_us"] = round(graph_time(rotate(make_torch, size)) * 1e6, 2)
            results.append(line)
            print(json.dumps(line), flush=True)
    return results + _bench_step_inputs()


Make = Callable[[], Callable[[], object]]


def _glue_ops(tokens: int) -> list[tuple[str, int, Make, Make | None]]:
    """(name, bytes that must move, makes a call on fresh data, the same in torch)."""
    weight = torch.randn(HIDDEN, device=DEVICE, dtype=torch.bfloat16)
    cos_sin = torch.randn(8192, DIM, device=DEVICE)

    def on(op: Callable[..., object], *sizes: int) -> Make:
        def make() -> Callable[[], object]:
            data = [torch.randn(tokens, size, device=DEVICE, dtype=torch.bfloat16) for size in sizes]
            return lambda: op(*data)

        return make

    def rope() -> Callable[[], object]:
        x = torch.randn(tokens, (HEADS + 2 * KV_HEADS) * DIM, device=DEVICE, dtype=torch.bfloat16)
        k, v = (torch.empty(tokens // 64 + 1, KV_HEADS, 64, DIM, device=DEVICE, dtype=x.dtype) for _ in range(2))
        positions = torch.arange(tokens, device=DEVICE, dtype=torch.int32)
        slots = torch.randperm(tokens, device=DEVICE)
        return lambda: rope_and_cache(x, cos_sin, positions, slots, k, v, HEADS, KV_HEADS, DIM)

    def norm_torch(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(residual.add_(x), (HIDDEN,), weight, 1e-5)

    norm = on(lambda x, residual: add_rms_norm(x, residual, weight, 1e-5), HIDDEN, HIDDEN)
    norm_fp8 = on(lambda x, residual: rms_norm_fp8(x, residual, weight, 1e-5), HIDDEN, HIDDEN)
    silu_torch = on(lambda x: F.silu(x[:, :INNER]) * x[:, INNER:], 2 * INNER)
    return [
        ("add_rms_norm", tokens * HIDDEN * 8, norm, on(norm_torch, HIDDEN, HIDDEN)),
        ("add_rms_norm_fp8", tokens * HIDDEN * 7, norm_fp8, None),
        ("silu_and_mul", tokens * INNER * 6, on(silu_and_mul, 2 * INNER), silu_torch),
        ("silu_and_mul_fp8", tokens * INNER * 5, on(silu_and_mul_fp8, 2 * INNER), None),
        ("rope_and_cache", tokens * (HEADS + 2 * KV_HEADS) * DIM * 4, rope, None),
    ]


def _bench_step_inputs() -> list[Result]:
    """The once-a-step kernels at 256 decodes of 1,024 tokens."""
    import numpy as np

    rows, table = 256, torch.zeros(1024, 512, dtype=torch.int32, device=DEVICE)
    ints = np.arange(rows, dtype=np.int32)
    plan = {
        "rows": ints, "query_lens": np.ones(rows, np.int32), "context_lens": np.full(rows, 1023, np.int32),
        "from_host": np.zeros(rows, bool), "token_ids": ints[:0], "block_rows": ints, "block_starts": ints * 0 + 15,
        "block_counts": ints * 0 + 1, "block_pages": ints,
    }  # fmt: skip
    buffer = np.empty(1 << 16, np.int32)
    pack_step(buffer, **plan)
    start = time.perf_counter()
    for _ in range(100):
        size = pack_step(buffer, **plan)
    host = (time.perf_counter() - start) / 100
    packed = torch.from_numpy(buffer[:size].copy()).to(DEVICE)
    longs, lens = (
        torch.zeros(rows, dtype=torch.int64, device=DEVICE),
        torch.zeros(rows, dtype=torch.int32, device=DEVICE),
    )
    starts, batch = torch.zeros(rows + 1, dtype=torch.int32, device=DEVICE), torch.zeros_like(table[:rows])
    inputs = {"token_ids": longs, "positions": lens.clone(), "slot_mapping": longs.clone(), "seq_lens": lens}
    inputs |= {"query_start_loc": starts, "batch_block_table": batch}
    last = torch.zeros(1024, dtype=torch.int32, device=DEVICE)
    decode = PagedDecode(num_kv_heads=KV_HEADS, group=GROUP, head_dim=DIM, page_size=64, max_rows=1024, device=DEVICE)
    timed = {
        "pack_step_host": host,
        "write_blocks": graph_time([lambda: write_blocks(packed, table)] * 16),
        "prepare_step": graph_time([lambda: prepare_step(packed, table, last, page_size=64, **inputs)] * 16),
        "plan": graph_time([lambda: decode.plan(lens, starts)] * 16),
    }
    lines = [{"op": name, "rows": rows, "us": round(seconds * 1e6, 2)} for name, seconds in timed.items()]
    for line in lines:
        print(json.dumps(line), flush=True)
    return lines


def bench_layer() -> list[Result]:
    """A decoder layer of Llama 3.1 8B (cuBLAS and these kernels) in one graph, with dependent launch and without."""
    layers = 8
    shapes = [(6144, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
    weights = [
        [torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16) * k**-0.5 for n, k in shapes] for _ in range(layers)
    ]
    results = []
    for batch, context in ((1, 1024), (64, 1024), (256, 512)):
        x = torch.randn(batch, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
        gemms = graph_time([partial(_gemms, x, weight) for weight in weights])
        data = Batch([context] * batch, [1] * batch, 64, layers)
        for pdl in (False, True):
            seconds = graph_time(_layer_calls(data, weights, pdl))
            results.append({
                "op": "layer", "batch": batch, "context": context, "pdl": pdl, "us": round(seconds * 1e6, 2),
                "gemms_us": round(gemms * 1e6, 2),
            })  # fmt: skip
            print(json.dumps(results[-1]), flush=True)
    return results


def _gemms(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    qkv, out, up, down = weights
    F.linear(x, qkv), F.linear(x, out)
    F.linear(F.linear(x, up)[:, :INNER], down)


def _layer_calls(data: Batch, weights: list[list[torch.Tensor]], pdl: bool) -> list[Callable[[], object]]:
    batch = len(data.lens)
    op = PagedDecode(
        num_kv_heads=KV_HEADS, group=GROUP, head_dim=DIM, page_size=64, max_rows=1024, device=DEVICE,
        **decode_tuning(batch),
    )  # fmt: skip
    op.plan(data.seq_lens, data.starts)
    norm = torch.ones(HIDDEN, device=DEVICE, dtype=torch.bfloat16)
    cos_sin = torch.randn(8192, DIM, device=DEVICE)
    x, residual = (torch.randn(batch, HIDDEN, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    positions = data.seq_lens - 1
    slots = data.table.gather(1, (positions // 64)[:, None].long())[:, 0].long() * 64 + positions % 64

    def layer(i: int) -> None:
        qkv_w, out_w, up_w, down_w = weights[i]
        k, v = data.kv[i]
        hidden, _ = add_rms_norm(x, residual, norm, 1e-5, pdl=pdl)
        q = rope_and_cache(F.linear(hidden, qkv_w), cos_sin, positions, slots, k, v, HEADS, KV_HEADS, DIM, pdl=pdl)
        op(q, k, v, data.table, data.seq_lens, data.starts, DIM**-0.5, data.out, pdl=pdl)
        hidden, _ = add_rms_norm(F.linear(data.out.view(batch, -1), out_w), residual, norm, 1e-5, pdl=pdl)
        F.linear(silu_and_mul(F.linear(hidden, up_w), pdl=pdl), down_w)

    return [partial(layer, i) for i in range(len(weights))]


SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0}, "gumbel": {}, "top_k50": {"top_k": 50}, "top_p0.9": {"top_p": 0.9},
    "top_k50_top_p0.9": {"top_k": 50, "top_p": 0.9}, "min_p0.05": {"min_p": 0.05},
    "penalties": {"repetition": 1.2, "presence": 0.5},
}  # fmt: skip


def bench_sample() -> list[Result]:
    """A step's draws over Llama 3's vocabulary, every row with the same parameters; torch sorts."""
    vocab, results = 128256, []
    for batch, (name, parameters) in itertools.product((1, 64, 256), SAMPLING.items()):
        logits = torch.randn(batch, vocab, device=DEVICE, dtype=torch.bfloat16) * 3
        tables, sampler = SamplingTables.empty(batch, vocab, DEVICE), Sampler(batch, vocab, DEVICE)
        defaults = {
            "temperature": 1.0,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition": 1.0,
            "frequency": 0.0,
            "presence": 0.0,
        }
        numbers = [parameters.get(key, value) for key, value in defaults.items()]
        tables.floats[:, :6] = torch.tensor(numbers, device=DEVICE)
        tables.ints[:, 0], tables.ints[:, 5] = int(parameters.get("top_k", 0)), 2 if name == "penalties" else 0
        tables.seeds.copy_(torch.arange(batch))
        rows = torch.arange(batch, device=DEVICE, dtype=torch.int32)
        ints = [torch.zeros(batch, device=DEVICE, dtype=torch.int32) for _ in range(3)]
        out = {
            "tokens": ints[0],
            "ranks": ints[1],
            "last_token": ints[2],
            "logprobs": torch.zeros(batch, device=DEVICE),
        }
        out["failed"] = torch.zeros(batch, device=DEVICE, dtype=torch.int8)

        calls = partial(_sample_step, logits, rows, tables, sampler, out)
        line = {"op": "sample", "case": name, "batch": batch, "us": round(graph_time([calls] * 8, replays=7) * 1e6, 1)}
        line["floor_us"] = round(logits.nbytes / FLOOR_TBS / 1e6, 1)
        if name in ("greedy", "top_p0.9"):
            other = torch.argmax if name == "greedy" else _torch_top_p
            line["torch_us"] = round(graph_time([partial(other, logits, -1)] * 4, replays=5) * 1e6, 1)
        results.append(line)
        print(json.dumps(line), flush=True)
    return results


def _sample_step(
    logits: torch.Tensor, rows: torch.Tensor, tables: SamplingTables, sampler: Sampler, out: dict[str, torch.Tensor]
) -> None:
    process_logits(logits, rows, rows, tables, sampler.processed)
    sampler(logits, rows, rows, tables, **out)


def _torch_top_p(logits: torch.Tensor, dim: int) -> torch.Tensor:
    values, ids = logits.float().sort(dim=dim, descending=True)
    probabilities = values.softmax(dim)
    probabilities = probabilities.masked_fill(probabilities.cumsum(dim) - probabilities > 0.9, 0)
    noise = torch.empty_like(probabilities).exponential_()
    return ids.gather(dim, (probabilities / noise).argmax(dim, keepdim=True))


def run_tests() -> Result:
    """The kernels' own tests, on this GPU, in parallel processes."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(min(14, os.cpu_count() or 1)), "-p", "no:cacheprovider"]
    command += ["tests/kernels_triton", "--deselect", "tests/kernels_triton/test_compiles_ahead.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    lines = done.stdout.strip().splitlines()
    print("\n".join(lines[-25:]), done.stderr[-300:], flush=True)
    return {
        "op": "tests",
        "ok": done.returncode == 0,
        "summary": lines[-1] if lines else "",
    }


def ceilings() -> list[Result]:
    """The card as found: device-to-device copy and the largest bf16 product's rate."""
    x = torch.randn(1 << 29, device=DEVICE, dtype=torch.float32)
    y = torch.empty_like(x)
    copy = 2 * x.nbytes / graph_time([lambda: y.copy_(x)] * 2) / 1e12
    return [{"op": "copy", "tbs": round(copy, 3)}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", default=os.path.join(os.environ.get("OUT", "."), "gpu-kernels.json"))
    parser.add_argument("--only", default="check,decode,extend,glue,layer,sample")
    parser.add_argument("--tune", action="store_true", help="time every variant, not only the defaults")
    options = parser.parse_args()
    import triton

    torch.manual_seed(0)
    report: Result = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "command": " ".join(sys.argv), "results": [],
    }  # fmt: skip
    sections: dict[str, Callable[[], list[Result]]] = {
        "check": lambda: [run_tests()], "decode": lambda: bench_decode(options.tune),
        "extend": lambda: bench_extend(options.tune), "glue": bench_glue, "layer": bench_layer,
        "sample": bench_sample,
    }  # fmt: skip
    report["results"] += ceilings()
    for name in options.only.split(","):
        start = time.perf_counter()
        try:
            report["results"] += sections[name]()
        except Exception as error:  # the other sections' numbers are still wanted
            report["results"].append({"op": name, "failed": repr(error)[:2000]})
            print(json.dumps(report["results"][-1]), flush=True)
        print(f"# {name}: {time.perf_counter() - start:.1f} s", flush=True)
        torch.cuda.empty_cache()
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
