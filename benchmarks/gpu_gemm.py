"""Products of a decode step on a GPU: cuBLAS against `skinny_linear`, shape by shape, in CUDA graphs.

    python benchmarks/gpu_gemm.py --json OUT.json [--rows 1,8,16]

The shapes are Llama 3.1 8B's. Weights take turns, so that none is found in the second-level cache. `floor_us` is the
weights' bytes at the card's measured read rate. The best tuning of each shape is what
`octavo/kernels/linear.py` has in its table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from octavo.bench.record import environment
from octavo.kernels.triton.paged_decode import PagedDecode, decode_tuning
from octavo.kernels.triton.rms_norm import add_rms_norm
from octavo.kernels.triton.rope_and_cache import rope_and_cache
from octavo.kernels.triton.silu_and_mul import silu_and_mul
from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning, skinny_linear

SHAPES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
CALLS = 24  # in a graph


def tunings() -> list[Tuning]:
    """What is tried."""
    tiles = [(16, 256, 4, 4), (16, 256, 6, 4), (16, 512, 3, 4), (16, 512, 4, 8), (32, 256, 4, 4), (32, 256, 3, 8)]
    tiles += [(32, 128, 6, 4), (64, 128, 4, 4), (64, 128, 5, 8), (16, 128, 8, 2), (64, 64, 8, 4)]
    return [
        Tuning(n, k, split, stages, warps, 0) for (n, k, stages, warps), split in itertools.product(tiles, (1, 2, 4))
    ]


TUNINGS = {str(tuning): tuning for tuning in tunings()}


def compile_share(rows: list[int], index: int, count: int) -> None:
    """Compile every count-th tuning, so that the cache has it."""
    device = torch.device("cuda")
    space = SplitSpace(device)
    weight = torch.zeros(4096, 4096, dtype=torch.bfloat16, device=device)
    for number, (tuning, m) in enumerate(itertools.product(tunings(), rows)):
        if number % count == index:
            with contextlib.suppress(Exception):  # too much shared memory, say
                skinny_linear(weight[:m], weight, tuning=tuning, space=space)
    torch.cuda.synchronize()


def graph_us(call: Any, weights: list[torch.Tensor]) -> float:
    """Microseconds of one call, from a graph of many."""
    call(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            call(weights[i % len(weights)])
    best = float("inf")
    for _ in range(6):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3 / CALLS)
    return best


def read_rate(device: torch.device) -> float:
    """Bytes a second of a large sum."""
    data = torch.zeros(1 << 30, dtype=torch.bfloat16, device=device)
    seconds = graph_us(lambda _: data.view(torch.int32).amax(), [data]) / 1e6
    return data.nbytes / seconds


def measure(rows: list[int]) -> dict[str, Any]:
    device = torch.device("cuda")
    space = SplitSpace(device)
    rate = read_rate(device)
    out: dict[str, Any] = {"read_TBps": rate / 1e12}
    for name, (outputs, columns) in SHAPES.items():
        copies = max(2, -(-(160 << 20) // (outputs * columns * 2)))
        weights = [torch.randn(outputs, columns, device=device).bfloat16() for _ in range(copies)]
        for m in rows:
            x = torch.randn(m, columns, device=device).bfloat16()
            entry: dict[str, Any] = {"floor_us": outputs * columns * 2 / rate * 1e6}
            entry["cublas_us"] = graph_us(lambda w, x=x: torch.nn.functional.linear(x, w), weights)
            reference = x.double() @ weights[0].double().T
            tried = []
            for tuning in tunings():
                try:
                    y = skinny_linear(x, weights[0], tuning=tuning, space=space)
                    wrong = float((y.double() - reference).abs().max() / reference.abs().max())
                    took = graph_us(lambda w, x=x, t=tuning: skinny_linear(x, w, tuning=t, space=space), weights)
                    tried.append((took, wrong, str(tuning)))
                except Exception as error:
                    print(name, m, tuning, str(error)[:60], flush=True)
            tried.sort()
            entry["skinny"] = tried[:6]
            out[f"{name}-{m}"] = entry
            best = [(round(us, 1), t.removeprefix("Tuning")) for us, _, t in tried[:3]]
            print(name, m, f"{entry['floor_us']:.1f} {entry['cublas_us']:.1f}", best, flush=True)
        del weights
    return out


LAYERS = 6
VARIANTS: dict[str, tuple[bool, bool, int]] = {  # skinny, pdl, bytes of each row to prefetch
    "cublas": (False, False, 0),
    "cublas, early start": (False, True, 0),
    "skinny": (True, False, 0),
    "skinny, early start": (True, True, 0),
    "skinny, early start, prefetch 256": (True, True, 256),
    "skinny, early start, prefetch 512": (True, True, 512),
    "skinny, early start, prefetch 1024": (True, True, 1024),
    "skinny, early start, prefetch 2048": (True, True, 2048),
}


def chain(best: dict[str, Tuning], m: int) -> dict[str, float]:
    """Microseconds of one layer of a decode step with 300 keys a row, of each variant."""
    device = torch.device("cuda")
    weights = [
        {name: torch.randn(*SHAPES[name], device=device).bfloat16() * 0.02 for name in ("qkv", "o", "gate_up", "down")}
        for _ in range(LAYERS)
    ]
    norm = torch.ones(4096, device=device).bfloat16()
    caches = [torch.randn(m * 8, 8, 64, 128, device=device).bfloat16() for _ in range(2)]
    table = torch.arange(m * 8, device=device, dtype=torch.int32).view(m, 8)
    lengths = torch.full((m,), 300, device=device, dtype=torch.int32)
    starts = torch.arange(m + 1, device=device, dtype=torch.int32)
    positions, slots = lengths - 1, table[:, 4].long() * 64 + 43
    cos_sin = torch.randn(1024, 128, device=device)
    decode = PagedDecode(
        num_kv_heads=8, group=4, head_dim=128, page_size=64, max_rows=m, device=device, **decode_tuning(m)
    )
    space = SplitSpace(device)
    out: dict[str, float] = {}
    for name, (skinny, pdl, prefetch) in VARIANTS.items():

        def product(x: torch.Tensor, which: str, layer: Any, skinny=skinny, pdl=pdl, prefetch=prefetch) -> torch.Tensor:
            if not skinny:
                return torch.nn.functional.linear(x, layer[which])
            tuning = dataclasses.replace(best[which], prefetch=prefetch)
            return skinny_linear(x, layer[which], tuning=tuning, space=space, pdl=pdl)

        def step(pdl=pdl, product=product) -> None:
            x = torch.zeros(m, 4096, device=device, dtype=torch.bfloat16)
            residual = torch.ones_like(x)
            decode.plan(lengths, starts)
            for layer in weights:
                x, residual = add_rms_norm(x, residual, norm, 1e-5, pdl=pdl)
                qkv = product(x, "qkv", layer)
                q = rope_and_cache(qkv, cos_sin, positions, slots, *caches, 32, 8, 128, pdl=pdl)
                attended = torch.empty_like(q)
                decode(q, *caches, table, lengths, starts, 0.1, attended, pdl=pdl)
                x = product(attended.view(m, 4096), "o", layer)
                x, residual = add_rms_norm(x, residual, norm, 1e-5, pdl=pdl)
                x = product(silu_and_mul(product(x, "gate_up", layer), pdl=pdl), "down", layer)

        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(4):
                step()
        took = []
        for _ in range(8):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            took.append(start.elapsed_time(end) * 1e3 / (4 * LAYERS))
        out[name] = min(took)
        print(f"a layer, {m} rows, {name}: {out[name]:.1f} us", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", default="1,8,16")
    arguments = parser.parse_args()
    rows = [int(part) for part in arguments.rows.split(",")]
    workers = 12
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=compile_share, args=(rows, i, workers)) for i in range(workers)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    record = environment() | {"command": "python benchmarks/gpu_gemm.py " + " ".join(sys.argv[1:])}
    record["gemm"] = measure(rows)
    record["layer_us"] = {}
    for m in rows:
        best = {
            name: TUNINGS[record["gemm"][f"{name}-{m}"]["skinny"][0][2]] for name in ("qkv", "o", "gate_up", "down")
        }
        record["layer_us"][str(m)] = chain(best, m)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
