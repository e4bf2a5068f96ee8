"""The compiled CPU kernels against torch's own, at SmolLM2-135M's shapes, beside the machine's measured peaks.

    python benchmarks/cpu_kernels.py --note "what else the machine did" --json benchmarks/results/cpu-kernels.json

Each row is the least time of several runs, ours and torch's in turn. Products are those of a whole forward pass (30
layers of 4 matrices, or the matrix of the vocabulary), so that weights come from memory as they do in use; torch's are
float32, as `--quantization none` computes. Attention's rival reads keys and values that already lie side by side.

Peaks: the sum of an array far larger than the caches, and torch's float32 product of 1536 x 1536 matrices.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from octavo.bench.record import environment, write_json
from octavo.kernels import native
from octavo.quant import LinearScheme, schemes

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 576, 9, 3, 64, 30, 49152
LAYER_SHAPES = [(960, 576), (576, 576), (3072, 576), (576, 1536)]  # qkv, output, gate and up, down
TOKENS = (1, 4, 16, 64, 600)
CONTEXTS = (64, 256, 1024, 2048)
PAGE = 16

Run = Callable[[], Any]


def least(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of the fastest run of each; in turns, so that a busy moment meets them all."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def row(kernel: str, shape: str, times: dict[str, float], operations: float, sizes: dict[str, float]) -> dict[str, Any]:
    """operations: of products, in one run, 0 where they are not what takes time; sizes: bytes to read and write."""
    result: dict[str, Any] = {"kernel": kernel, "shape": shape}
    for name, seconds in times.items():
        result[name] = {
            "us": round(seconds * 1e6, 1),
            "gops": round(operations / seconds / 1e9, 1),
            "gb_per_s": round(sizes[name] / seconds / 1e9, 1),
        }
    return result


def peaks() -> dict[str, float]:
    block, square = torch.ones(64 << 20), torch.randn(1536, 1536)
    times = least({"read": block.sum, "multiply": lambda: square @ square}, 15)
    return {
        "read_gb_per_s": round(block.nbytes / times["read"] / 1e9, 1),
        "float32_gops": round(2 * 1536**3 / times["multiply"] / 1e9, 1),
    }


def products(shapes: list[tuple[int, int]], tokens: tuple[int, ...], name: str) -> list[dict[str, Any]]:
    ways: dict[str, tuple[LinearScheme, list[Any]]] = {}
    weights = [torch.randn(shape) / 30 for shape in shapes]
    for label, scheme in (("int4", "int4"), ("int8", "int8"), ("torch", "none")):
        how = schemes(scheme).usual
        made = [how.make(weight, None, device=torch.device("cpu"), dtype=torch.float32) for weight in weights]
        ways[label] = how, made
    elements = sum(weight.numel() for weight in weights)
    per_weight = {"int4": 0.625, "int8": 1.0, "torch": 4.0}
    rows = []
    for count in tokens:
        inputs = {columns: torch.randn(count, columns) for _, columns in shapes}

        def run(label: str, inputs: dict[int, torch.Tensor] = inputs) -> None:
            how, made = ways[label]
            for (_, columns), params in zip(shapes, made, strict=True):
                how.apply(inputs[columns], params)

        times = least({label: (lambda label=label: run(label)) for label in ways}, 3 if count > 64 else 12)
        sizes = {label: elements * size for label, size in per_weight.items()}
        rows.append(row(name, f"{count} tokens", times, 2.0 * count * elements, sizes))
    return rows


def small_kernels() -> list[dict[str, Any]]:
    rows = []
    for count in TOKENS:
        x, residual, weight = torch.randn(count, HIDDEN), torch.zeros(count, HIDDEN), torch.ones(HIDDEN)
        gate_up = torch.randn(count, 3072)
        norms = {
            "octavo": lambda x=x, r=residual, w=weight: native.rms_norm(x, r, w, 1e-5),
            "torch": lambda x=x, r=residual, w=weight: torch.nn.functional.rms_norm(r.add_(x), (HIDDEN,), w, 1e-5),
        }
        gates = {
            "octavo": lambda x=gate_up: native.silu_and_mul(x),
            "torch": lambda x=gate_up: silu(x[:, :1536]) * x[:, 1536:],
        }
        touched = dict.fromkeys(norms, 16.0 * x.numel()), dict.fromkeys(gates, 6.0 * gate_up.numel())
        rows.append(row("add_rms_norm", f"{count} tokens", least(norms, 200), 0.0, touched[0]))
        rows.append(row("silu_and_mul", f"{count} tokens", least(gates, 200), 0.0, touched[1]))
        rows.append(rotation(count))
    return rows


def rotation(count: int) -> dict[str, Any]:
    qkv, angles = torch.randn(count, 960), torch.rand(2048, HEAD_DIM)
    positions, slots = torch.arange(count, dtype=torch.int32), torch.arange(count)
    caches = [torch.zeros(count // PAGE + 1, KV_HEADS, PAGE, HEAD_DIM) for _ in range(2)]

    def by_torch() -> None:
        heads = qkv.view(count, HEADS + 2 * KV_HEADS, HEAD_DIM)
        cos, sin = angles[positions][:, None].chunk(2, dim=-1)
        one, two = heads[:, : HEADS + KV_HEADS].chunk(2, dim=-1)
        turned = torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)
        caches[0][slots // PAGE, :, slots % PAGE] = turned[:, HEADS:]
        caches[1][slots // PAGE, :, slots % PAGE] = heads[:, HEADS + KV_HEADS :]

    def compiled() -> None:
        native.rope_and_cache(qkv, angles, positions, slots, *caches, HEADS, KV_HEADS, HEAD_DIM)

    times = least({"octavo": compiled, "torch": by_torch}, 100)
    return row("rope_and_cache", f"{count} tokens", times, 0.0, dict.fromkeys(times, 8.0 * qkv.numel()))


def attention(rows: int, queries: int, context: int) -> dict[str, Any]:
    blocks = -(-context // PAGE)
    pages = torch.randperm(rows * blocks)
    keys, values = (torch.randn(rows * blocks, KV_HEADS, PAGE, HEAD_DIM) for _ in range(2))
    q = torch.randn(rows * queries, HEADS, HEAD_DIM)
    starts = torch.arange(0, rows * queries + 1, queries, dtype=torch.int32)
    lens = torch.full((rows,), context, dtype=torch.int32)
    table = pages.view(rows, blocks).int()
    side_by_side = torch.randn(2, rows, KV_HEADS, context, HEAD_DIM)
    theirs = q.view(rows, queries, HEADS, HEAD_DIM).transpose(1, 2).contiguous()
    runs = {
        "octavo": lambda: native.paged_attention(q, keys, values, table, starts, lens, 0.125),
        "torch": lambda: scaled_dot_product_attention(
            theirs, side_by_side[0], side_by_side[1], is_causal=queries > 1, enable_gqa=True
        ),
    }
    pairs = queries * context if queries == 1 else queries * (queries + 1) // 2  # a prompt without a context
    times = least(runs, 25)
    sizes = dict.fromkeys(times, 8.0 * rows * context * KV_HEADS * HEAD_DIM)
    shape = f"{rows} sequences, {queries} queries, {context} keys"
    return row("paged_attention", shape, times, 4.0 * rows * pairs * HEADS * HEAD_DIM, sizes)


def draw() -> dict[str, Any]:
    logits = torch.randn(VOCAB) * 3
    runs = {
        "octavo": lambda: native.gumbel_argmax(logits, 1.25, 7, 11),
        "torch": lambda: int(torch.multinomial((logits * 1.25).softmax(0), 1)),
    }
    return row("gumbel_argmax", f"{VOCAB} tokens", least(runs, 50), 0.0, dict.fromkeys(runs, 4.0 * VOCAB))


def shown(entry: dict[str, Any]) -> str:
    ways = [f"{name} {found['us']:11.1f} µs" for name, found in entry.items() if isinstance(found, dict)]
    ours = next(found for name, found in entry.items() if isinstance(found, dict))
    ratio = entry["torch"]["us"] / ours["us"]
    rates = f"{ours['gops']:7.1f} GOP/s {ours['gb_per_s']:6.1f} GB/s"
    return f"{entry['kernel']:16} {entry['shape']:36} {rates}  x{ratio:5.2f}  {'  '.join(ways)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="one is less noisy on a busy machine"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    native.configure(threads=arguments.threads)
    if not native.available():
        sys.exit(f"There are no compiled kernels to measure: {native.reason()}")
    torch.manual_seed(0)
    before = peaks()
    print(before)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        rows += products(LAYER_SHAPES * LAYERS, TOKENS, "linear, layers")
        rows += products([(VOCAB, HIDDEN)], TOKENS[:-1], "linear, logits")
        rows += small_kernels()
        rows += [attention(16, 1, context) for context in CONTEXTS]
        rows += [attention(1, 600, 600), attention(1, 2048, 2048), draw()]
    for entry in rows:
        print(shown(entry))
    if arguments.json:
        # Peaks again, as the machine may have become busier.
        found = environment() | {"command": shlex.join(["python", *sys.argv]), "note": arguments.note}
        write_json(
            arguments.json, found | {"threads": torch.get_num_threads(), "peaks": [before, peaks()], "rows": rows}
        )


if __name__ == "__main__":
    main()
