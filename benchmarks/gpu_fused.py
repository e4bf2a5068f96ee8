"""Kernels that do several things at once, against those that do one each; and tunings of decode attention.

    python benchmarks/gpu_fused.py --json OUT.json [--only gemv,layer,gated,gate,decode,decode_e4m3,fresh]

The shapes are Llama 3.1 8B's, times are microseconds in CUDA graphs, weights and pages in turn so that none is found in
the second-level cache. `gemv` has one and two rows by tile; `layer` a whole layer of a decode step; `gated` the product
with its gate by tile, beside cuBLAS's fastest of eight and the gate's own kernel; `decode` attention of mixed lengths;
`fresh` FA3 over prompts without context, from pages and from where their keys were made.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_gemm import SHAPES, graph_us

from octavo.attention.fa3 import Fa3Extend, Fa3Fresh, why_not
from octavo.bench.record import environment
from octavo.kernels.cublaslt import Product
from octavo.kernels.fp8 import quantize_rows
from octavo.kernels.linear import few_rows_tuning
from octavo.kernels.triton.gated_linear import EVERY_TILE, gated_linear
from octavo.kernels.triton.gemv import GemvTile, gemv
from octavo.kernels.triton.paged_decode import PagedDecode, decode_tuning
from octavo.kernels.triton.rms_norm import add_rms_norm, rms_norm_fp8
from octavo.kernels.triton.rope_and_cache import rope_and_cache
from octavo.kernels.triton.silu_and_mul import silu_and_mul, silu_and_mul_fp8
from octavo.kernels.triton.skinny_linear import skinny_linear
from octavo.kernels.triton.warm_up import compile_all, recorded

HIDDEN, LAYERS = 4096, 6
GEMV_TILES = [
    GemvTile(*t) for t in ((4, 1024, 3, 4), (8, 1024, 1, 4), (4, 1024, 1, 4), (4, 512, 1, 2), (2, 1024, 1, 4))
]
GATED_ROWS = (17, 64, 96, 128, 192, 256, 320, 384, 448, 512, 1024, 8192)
MIXES = ((450, 200), (200, 300), (64, 400), (16, 500), (8, 250), (4, 2000), (1, 300), (1, 8000), (500, 760), (64, 4096))
TUNINGS: dict[torch.dtype, list[tuple[int, int, int, int]]] = {  # tile, stages, programs, registers (0: no limit)
    torch.bfloat16: [
        (64, 2, 396, 0), (64, 3, 396, 0), (64, 3, 528, 0), (64, 5, 396, 0), (64, 7, 264, 0), (64, 7, 132, 0),
    ],
    torch.float8_e4m3fn: [
        (64, 2, 396, 0), (64, 2, 528, 128), (64, 3, 396, 0), (64, 3, 528, 128), (64, 5, 528, 128), (64, 7, 264, 0),
        (64, 7, 132, 0), (128, 2, 264, 0), (128, 3, 264, 0), (128, 3, 396, 168),
    ],
}  # fmt: skip
Timed = dict[str, Any]
HEADS: Timed = {"num_kv_heads": 8, "group": 4, "head_dim": 128, "page_size": 64}
device = torch.device("cuda", 0)


def matrices(name: str) -> list[torch.Tensor]:
    outputs, columns = SHAPES[name]
    return [torch.randn(outputs, columns, device=device).mul_(0.02).bfloat16() for _ in range(LAYERS)]


def prepared(calls: list[Callable[[], Any]]) -> None:
    """Compile what calls launch, side by side."""
    with recorded() as launches:
        for call in calls:
            call()
    compile_all(launches.values())


def bench_gemv() -> Timed:
    """{rows: {shape: {"skinny": us, tile: us, "fp8 " + tile: us}}}; norms, gates and sums are in the time."""
    out: Timed = {}
    gain = torch.rand(HIDDEN, device=device).bfloat16()
    for name in ("qkv", "o", "gate_up", "down"):
        weights = matrices(name)
        stored = [quantize_rows(weight) for weight in weights]
        for rows in (1, 2):
            x = torch.randn(rows, SHAPES[name][1], device=device).bfloat16()
            onto = torch.randn(rows, HIDDEN, device=device).bfloat16()
            around: Timed = {"gain": gain, "eps": 1e-5, "gated": name == "gate_up"}
            around = around if name in ("qkv", "gate_up") else {"onto": onto}
            options = [{"tile": tile, "pdl": True} | around for tile in GEMV_TILES]
            fp8 = [(rows_.values, rows_.scales.flatten()) for rows_ in stored]
            prepared([functools.partial(gemv, x, weights[0], **o) for o in options])
            prepared([functools.partial(gemv, x, fp8[0][0], scales=fp8[0][1], **o) for o in options])
            tuning = few_rows_tuning(*SHAPES[name], device)
            found = {"skinny": graph_us(lambda w, x=x, t=tuning: skinny_linear(x, w, tuning=t, pdl=True), weights)}
            for tile, o in zip(GEMV_TILES, options, strict=True):
                label = f"{tile.outputs}x{tile.columns} stages {tile.stages} warps {tile.warps}"
                found[label] = graph_us(lambda w, x=x, o=o: gemv(x, w, **o), weights)
                found[f"fp8 {label}"] = graph_us(lambda w, x=x, o=o: gemv(x, w[0], scales=w[1], **o), fp8)
            out.setdefault(str(rows), {})[name] = found
            print("gemv", rows, name, {k: round(v, 1) for k, v in found.items()}, flush=True)
    return out


def bench_layer() -> Timed:
    """Microseconds of one layer with 256 keys a row: kernels for each thing, fused ones, fused ones with e4m3."""
    weights = {name: matrices(name) for name in ("qkv", "o", "gate_up", "down")}
    stored = {name: [quantize_rows(weight) for weight in layers] for name, layers in weights.items()}
    out = {str(rows): layer(rows, weights, stored) for rows in (1, 2)}
    print("layer", out, flush=True)
    return out


def layer(rows: int, weights: dict[str, list[torch.Tensor]], stored: dict[str, list[Any]]) -> dict[str, float]:
    """The same for so many rows."""
    gain = torch.rand(HIDDEN, device=device).bfloat16()
    normed: Timed = {"gain": gain, "eps": 1e-5}
    caches = [torch.randn(64, 8, 64, 128, device=device).bfloat16() for _ in range(2)]
    table = torch.arange(rows * 8, device=device, dtype=torch.int32).view(rows, 8)
    lengths, starts = torch.full((rows,), 256, device=device).int(), torch.arange(rows + 1, device=device).int()
    positions, slots = lengths - 1, table[:, 3].long() * 64 + 63
    cos_sin = torch.randn(1024, 128, device=device)
    decode = PagedDecode(**HEADS, max_rows=8, device=device, **decode_tuning(8))
    decode.plan(lengths, starts)
    residual = torch.randn(rows, HIDDEN, device=device).bfloat16()
    tunings = {name: few_rows_tuning(*SHAPES[name], device) for name in weights}

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        q = rope_and_cache(qkv, cos_sin, positions, slots, *caches, 32, 8, 128, pdl=True)
        attended = torch.empty_like(q)
        decode(q, *caches, table, lengths, starts, 0.1, attended, pdl=True)
        return attended.view(rows, HIDDEN)

    def apart(_: Any) -> None:
        x = residual

        def product(x: torch.Tensor, name: str, i: int) -> torch.Tensor:
            return skinny_linear(x, weights[name][i], tuning=tunings[name], pdl=True)

        for i in range(LAYERS):
            x = product(add_rms_norm(x, residual, gain, 1e-5, pdl=True)[0], "qkv", i)
            x = product(attend(x), "o", i)
            x = product(add_rms_norm(x, residual, gain, 1e-5, pdl=True)[0], "gate_up", i)
            x = product(silu_and_mul(x, pdl=True), "down", i)

    def fused(_: Any, fp8: bool = False) -> None:
        def product(x: torch.Tensor, name: str, i: int, **around: Any) -> torch.Tensor:
            if fp8:
                return gemv(x, stored[name][i].values, scales=stored[name][i].scales, pdl=True, **around)
            return gemv(x, weights[name][i], pdl=True, **around)

        for i in range(LAYERS):
            product(attend(product(residual, "qkv", i, **normed)), "o", i, onto=residual)
            product(product(residual, "gate_up", i, gated=True, **normed), "down", i, onto=residual)

    ways = {"apart": apart, "fused": fused, "fused, fp8": functools.partial(fused, fp8=True)}
    return {name: graph_us(way, [residual]) / LAYERS for name, way in ways.items()}


def bench_gated() -> Timed:
    """{rows: {"cublas, then gate": us, tile: us}}."""
    weights, out = matrices("gate_up"), {}
    some = torch.randn(GATED_ROWS[-1], HIDDEN, device=device).bfloat16()
    prepared([functools.partial(gated_linear, some, weights[0], tile=tile, pdl=True) for tile in EVERY_TILE])
    for rows in GATED_ROWS:
        x = some[:rows]
        product, both = Product.of(rows, *SHAPES["gate_up"], torch.bfloat16), x.new_empty(rows, SHAPES["gate_up"][0])
        found = {}
        for i, algorithm in enumerate(product.algorithms(8)):

            def apart(w: torch.Tensor, x=x, product=product, algorithm=algorithm, both=both) -> None:
                product.run(x, w, algorithm, both)
                silu_and_mul(both, pdl=True)

            found[f"cublas {i}"] = graph_us(apart, weights)
        found = {"cublas, then gate": min(found.values())}
        for tile in EVERY_TILE:
            label = f"{tile.rows}x{tile.outputs}x{tile.columns} stages {tile.stages}"
            found[label] = graph_us(lambda w, x=x, t=tile: gated_linear(x, w, tile=t, pdl=True), weights)
        found["chosen"] = graph_us(lambda w, x=x: gated_linear(x, w, pdl=True), weights)
        out[str(rows)] = found
        print("gated", rows, {k: round(v, 1) for k, v in found.items()}, flush=True)
    return out


def bench_gate() -> Timed:
    """{rows: {kernel: us}} of the gate and the norm apart, with the time that their bytes take at 3 TB/s."""
    out: Timed = {}
    gain = torch.rand(HIDDEN, device=device).bfloat16()
    for rows in (64, 512, 8192):
        both = [torch.randn(rows, SHAPES["gate_up"][0], device=device).bfloat16() for _ in range(3)]
        x = [torch.randn(rows, HIDDEN, device=device).bfloat16() for _ in range(LAYERS)]
        residual = x[0].clone()
        inner = both[0].shape[1] // 2
        found = {
            "gate": graph_us(lambda t: silu_and_mul(t, pairs=True, pdl=True), both),
            "gate, bytes": rows * inner * 6 / 3e6,
            "gate e4m3": graph_us(lambda t: silu_and_mul_fp8(t, pairs=True, pdl=True), both),
            "gate e4m3, bytes": rows * inner * 5 / 3e6,
            "norm e4m3": graph_us(lambda t, r=residual: rms_norm_fp8(t, r, gain, 1e-5, pdl=True), x),
            "norm e4m3, bytes": rows * HIDDEN * 7 / 3e6,
        }
        out[str(rows)] = found
        print("gate", rows, {k: round(v, 1) for k, v in found.items()}, flush=True)
    return out


def bench_decode(dtype: torch.dtype = torch.bfloat16) -> list[Timed]:
    """Attention of rows with uniformly random lengths up to twice the mean, by tuning."""
    generator = torch.Generator().manual_seed(1)
    return [mixed_lengths(rows, mean, dtype, generator) for rows, mean in MIXES]


def mixed_lengths(rows: int, mean: int, dtype: torch.dtype, generator: torch.Generator) -> Timed:
    lengths = (torch.rand(rows, generator=generator) * 2 * mean).int().clamp(8, 8191)
    pages = (lengths + 63) // 64
    total = int(pages.sum())
    layers = [
        [torch.randn(total, 8, 64, 128, device=device).to(dtype) for _ in range(2)]
        for _ in range(2 if total > 800 else 6)
    ]
    table = torch.zeros(rows, 128, dtype=torch.int32)
    for row, part in enumerate(torch.randperm(total).int().split(pages.tolist())):
        table[row, : len(part)] = part
    where = [t.to(device) for t in (table, lengths, torch.arange(rows + 1, dtype=torch.int32))]
    q = torch.randn(rows, 32, 128, device=device).bfloat16()
    result = torch.empty_like(q)
    found: Timed = {"rows": rows, "mean_keys": mean, "bytes": int(lengths.sum()) * 2 * 8 * 128 * dtype.itemsize}
    scales = [torch.ones(8, device=device) if dtype.itemsize == 1 else None] * 2

    def attend(decode: PagedDecode, kv: Any) -> None:
        decode(q, *kv, *where, 0.1, result, k_scale=scales[0], v_scale=scales[1], pdl=True)

    ways = {}
    for tile, stages, programs, registers in TUNINGS[dtype]:
        options = {"tile": tile, "num_stages": stages, "num_programs": programs, "maxnreg": registers or None}
        decode = PagedDecode(**HEADS, max_rows=rows, device=device, **options)
        decode.plan(where[1], where[2])
        label = f"tile {tile} stages {stages} programs {programs}" + (f" registers {registers}" if registers else "")
        ways[label] = functools.partial(attend, decode)
    prepared([functools.partial(way, layers[0]) for way in ways.values()])
    found |= {label: graph_us(way, layers) for label, way in ways.items()}
    print("decode", dtype, {k: round(v, 1) for k, v in found.items()}, flush=True)
    return found


def bench_fresh() -> Timed:
    """{prompts: {"pages of 64": us, "pages of 128": us, "no pages": us, "difference": ...}}."""
    missing = why_not(device, 128, torch.bfloat16)
    if missing is not None:
        return {"not run": missing}
    out: Timed = {}
    for count, length in ((2, 4096), (16, 512), (3, 160)):
        tokens = count * length
        starts = torch.arange(count + 1, device=device).int() * length
        lengths = torch.full((count,), length, device=device).int()
        q = torch.randn(tokens, 32, 128, device=device).bfloat16()
        layers = [torch.randn(tokens, 48 * 128, device=device).bfloat16() for _ in range(3)]
        results = [torch.empty_like(q) for _ in range(2)]
        found: Timed = {}
        for page in (64, 128):
            pages = -(-length // page)
            caches = []
            for qkv in layers:
                heads = qkv.view(count, length, 48, 128)[:, :, 32:]
                padded = torch.nn.functional.pad(heads, (0, 0, 0, 0, 0, pages * page - length))
                both = padded.view(count * pages, page, 16, 128).transpose(1, 2)
                caches.append([both[:, :8].contiguous(), both[:, 8:].contiguous()])
            table = torch.arange(count * pages, device=device).int().view(count, pages)
            paged = Fa3Extend(num_heads=32, num_kv_heads=8, head_dim=128, page_size=page)
            paged.begin(starts, lengths, table, first_row=0, end_row=count, longest=length, dtype=torch.bfloat16)
            call = functools.partial(paged_call, paged, q, results[0])
            found[f"pages of {page}"] = graph_us(call, caches)
        fresh = Fa3Fresh(num_heads=32, num_kv_heads=8, head_dim=128)
        fresh.begin(starts, first_row=0, first_token=0, longest=length)
        found["no pages"] = graph_us(lambda qkv, f=fresh, q=q, o=results[1]: f(q, qkv, 0.09, o), layers)
        call(caches[0])
        fresh(q, layers[0], 0.09, results[1])
        found["difference"] = float((results[0].float() - results[1].float()).abs().max())
        out[f"{count} x {length}"] = found
        print("fresh", count, length, found, flush=True)
    return out


def paged_call(paged: Fa3Extend, q: torch.Tensor, out: torch.Tensor, cache: list[torch.Tensor]) -> None:
    paged(q, *cache, 0.09, out)


PARTS: dict[str, Callable[[], Any]] = {
    "gemv": bench_gemv,
    "layer": bench_layer,
    "gated": bench_gated,
    "gate": bench_gate,
    "decode": bench_decode,
    "decode_e4m3": functools.partial(bench_decode, torch.float8_e4m3fn),
    "fresh": bench_fresh,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    record = environment() | {"command": "python benchmarks/gpu_fused.py " + " ".join(sys.argv[1:])}
    with torch.inference_mode():
        for part in arguments.only.split(","):
            record[part] = PARTS[part]()
            torch.cuda.empty_cache()
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
