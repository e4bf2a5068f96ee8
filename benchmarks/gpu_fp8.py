"""FP8 and the batch-invariant mode on a GPU: checks against references, products way by way, whole small models.

    python benchmarks/gpu_fp8.py --json OUT.json [--only checks,products,models] [--rows 1,16,64]

The shapes of products are Llama 3.1 8B's; times are microseconds a call, in CUDA graphs, weights in turn so that none
is found in the second-level cache. "best" is what an engine would choose at its start (octavo/kernels/tuned_fp8.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_gemm import SHAPES, graph_us

from octavo import LLM, SamplingParams
from octavo.bench.record import environment
from octavo.kernels import fp8
from octavo.kernels.rms_norm import add_rms_norm, add_rms_norm_e4m3
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_e4m3
from octavo.kernels.triton.invariant_linear import invariant_linear
from octavo.kernels.triton.warm_up import compile_all, recorded
from octavo.kernels.tuned_fp8 import LtAlgorithm, algorithms, candidates
from tests.tiny_models import make_tiny_llama

ROWS = [1, 16, 32, 64, 128, 256, 512, 1024, 8192]
SMALL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2000,
    "max_position_embeddings": 2048,
}
Stored = tuple[torch.Tensor, torch.Tensor]  # e4m3 [N, K], scales [N]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def on_cpu(rows: fp8.QuantizedRows) -> torch.Tensor:
    return (rows.values.float() * rows.scales).cpu()


# -- kernels against references --------------------------------------------------------------------------------------


@torch.inference_mode()
def checks() -> dict[str, Any]:
    """Largest differences, relative to the largest value: e4m3 keeps 3 bits, so a tie is 0.06 of a value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 4096, generator=generator).bfloat16()
    x[3], x[4, 7] = 0, 3e4
    gate_up, gain = torch.randn(70, 28672, generator=generator).bfloat16(), torch.rand(4096, generator=generator)
    gain = gain.bfloat16()
    out: dict[str, Any] = {"quantize": relative(on_cpu(fp8.quantize_rows(x.cuda())), on_cpu(fp8.quantize_rows(x)))}
    normed, _ = add_rms_norm_e4m3(x.cuda(), x.cuda(), gain.cuda(), 1e-5)
    out["norm"] = relative(on_cpu(normed), on_cpu(add_rms_norm_e4m3(x, x, gain, 1e-5)[0]))
    out["gate"] = relative(on_cpu(silu_and_mul_e4m3(gate_up.cuda())), on_cpu(silu_and_mul_e4m3(gate_up)))
    products: dict[str, float] = {}
    for outputs, columns in ((6144, 4096), (4096, 14336)):
        weight = fp8.quantize_rows(torch.randn(outputs, columns, device="cuda").bfloat16())
        for rows in (1, 16, 33, 128, 1000):
            quantized = fp8.quantize_rows(torch.randn(rows, columns, device="cuda").bfloat16())
            exact = (quantized.values.double() @ weight.values.double().T) * quantized.scales * weight.scales.T
            for way in every_way(rows, outputs, columns):
                with skipped(products, name_of(way)):
                    y = multiply(quantized, (weight.values, weight.scales[:, 0].contiguous()), way)
                    products[name_of(way)] = max(products.get(name_of(way), 0.0), relative(y, exact))
            y = invariant(quantized, (weight.values, weight.scales[:, 0].contiguous()))
            products["invariant"] = max(products.get("invariant", 0.0), relative(y, exact))
    quantized = fp8.quantize_rows(torch.full((4, 4096), 1.0, device="cuda").bfloat16())
    quantized.scales[2] = float("nan")
    weight = fp8.quantize_rows(torch.randn(4096, 4096, device="cuda").bfloat16())
    stored = (weight.values, weight.scales[:, 0].contiguous())
    out["nan_stays_in_its_row"] = all(
        multiply(quantized, stored, way).isnan().all(1).tolist() == [False, False, True, False]
        for way in candidates(4, 4096, 4096)
    )
    return out | {"products": products}


def multiply(x: fp8.QuantizedRows, stored: Stored, way: Any) -> torch.Tensor:
    return fp8.fp8_linear(x, *stored, None, torch.bfloat16, way=way)


def invariant(x: fp8.QuantizedRows, stored: Stored) -> torch.Tensor:
    return invariant_linear(x.values, stored[0], x_scales=x.scales, w_scales=stored[1], dtype=torch.bfloat16)


def every_way(rows: int, outputs: int, columns: int) -> list[Any]:
    return [*candidates(rows, outputs, columns), *algorithms(rows, (outputs, columns))]


def name_of(way: Any) -> str:
    if isinstance(way, str):
        return way
    if isinstance(way, LtAlgorithm):
        return "algorithm " + "-".join(f"{word:x}" for word in way.words if word)
    return f"own {way.block_n}x{way.block_k} split {way.split} stages {way.stages} warps {way.warps}"


@contextlib.contextmanager
def skipped(into: dict[str, Any], name: str) -> Any:
    """What cannot be launched is noted, not raised."""
    try:
        yield
    except Exception as error:
        into[name] = f"{type(error).__name__}: {str(error)[:160]}"


# -- times -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def products(rows: list[int]) -> dict[str, Any]:
    """By shape and number of rows: each way's microseconds."""
    compile_ways(rows)
    out: dict[str, Any] = {}
    for name, (outputs, columns) in SHAPES.items():
        copies = max(2, -(-(160 << 20) // (outputs * columns)))
        plain = [torch.randn(outputs, columns, device="cuda").bfloat16() for _ in range(copies)]
        stored = [(w.values, w.scales[:, 0].contiguous()) for w in map(fp8.quantize_rows, plain)]
        for m in (m for m in rows if name != "head" or m <= 1024):
            entry = one_product(m, plain, None if name == "head" else stored)
            out[f"{name} {m}"] = entry
            print(name, m, json.dumps(entry), flush=True)
        del plain, stored
    out["layer_ms_by_rows"] = {m: layer_ms(out, m) for m in rows}
    return out


def one_product(rows: int, plain: list[torch.Tensor], stored: list[Stored] | None) -> dict[str, Any]:
    outputs, columns = plain[0].shape
    x = torch.randn(rows, columns, device="cuda").bfloat16()
    entry: dict[str, Any] = {
        "bf16 cublas": graph_us(lambda w: torch.nn.functional.linear(x, w), plain),
        "bf16 invariant": graph_us(lambda w: invariant_linear(x, w), plain),
    }
    if stored is None:
        return entry
    quantized, one = fp8.quantize_rows(x), torch.ones((), device="cuda")
    calls: dict[str, Callable[[Stored], Any]] = {
        name_of(way): functools.partial(multiply_swapped, quantized, way) for way in every_way(rows, outputs, columns)
    }
    calls["row-wise, slow accumulation"] = lambda s: scaled(quantized, s[0], quantized.scales, s[1][None], False)
    calls["tensor-wise, unscaled"] = lambda s: scaled(quantized, s[0], one, one, True)
    calls["tensor-wise, unscaled, slow accumulation"] = lambda s: scaled(quantized, s[0], one, one, False)
    calls["invariant"] = lambda s: invariant(quantized, s)
    for name, call in calls.items():
        with skipped(entry, name):
            entry[name] = graph_us(call, stored)
    times = {name_of(way): entry[name_of(way)] for way in every_way(rows, outputs, columns)}
    best = min((took, name) for name, took in times.items() if isinstance(took, float))
    return entry | {"best": best[1], "best_us": best[0], "TBps": outputs * columns / best[0] / 1e6}


def multiply_swapped(x: fp8.QuantizedRows, way: Any, stored: Stored) -> torch.Tensor:
    return multiply(x, stored, way)


def scaled(
    x: fp8.QuantizedRows, weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, fast: bool
) -> torch.Tensor:
    return torch._scaled_mm(
        x.values, weight.t(), scale_a=left, scale_b=right, out_dtype=torch.bfloat16, use_fast_accum=fast
    )


def layer_ms(table: dict[str, Any], rows: int) -> dict[str, float]:
    """All products of Llama 3.1 8B's 32 layers."""
    entries = [table[f"{name} {rows}"] for name in SHAPES if name != "head"]
    sums: dict[str, float] = {}
    for kind in ("bf16 cublas", "row-wise", "tensor-wise", "best_us", "bf16 invariant", "invariant"):
        if all(isinstance(entry.get(kind), float) for entry in entries):
            sums[kind] = sum(entry[kind] for entry in entries) * 32 / 1e3
    return sums


def compile_ways(rows: list[int]) -> None:
    """Compile all candidates side by side."""
    with recorded() as launches:
        for (outputs, columns), m in ((shape, m) for shape in SHAPES.values() for m in rows if m <= 128):
            weight = torch.empty(outputs, columns, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
            x = fp8.QuantizedRows(weight[:m], torch.ones(m, 1, device="cuda"))
            for way in candidates(m, outputs, columns)[2:]:
                multiply(x, (weight, torch.ones(outputs, device="cuda")), way)
    compile_all(launches.values())


@torch.inference_mode()
def glue() -> dict[str, float]:
    """Norm, gate and quantization of few and many rows: with e4m3 at their end, and without."""
    out: dict[str, float] = {}
    gain = torch.ones(4096, device="cuda").bfloat16()
    for rows in (1, 64, 1024):
        x, gate_up = (torch.randn(rows, n, device="cuda").bfloat16() for n in (4096, 28672))
        calls: dict[str, Callable[[torch.Tensor], Any]] = {
            "norm bf16": lambda r, x=x: add_rms_norm(x, r, gain, 1e-5),
            "norm e4m3": lambda r, x=x: add_rms_norm_e4m3(x, r, gain, 1e-5),
            "gate bf16": lambda _, g=gate_up: silu_and_mul(g),
            "gate e4m3": lambda _, g=gate_up: silu_and_mul_e4m3(g),
            "quantize": lambda _, x=x: fp8.quantize_rows(x),
        }
        out |= {f"{name} {rows}": graph_us(call, [x.clone()]) for name, call in calls.items()}
    return out


# -- whole models ----------------------------------------------------------------------------------------------------


def texts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 700, (count,), generator=generator).tolist()
    return [torch.randint(3, 2000, (n,), generator=generator).tolist() for n in lengths]


def scores(llm: LLM, prompts: list[list[int]]) -> list[float]:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    results = llm.generate(prompts, params, use_tqdm=False)
    return [entry.logprob for result in results for entry in result.prompt_logprobs[1:]]


def models() -> dict[str, Any]:
    """A small random model: fp8 against the CPU's reference of fp8, e4m3 pages against bfloat16's, invariance."""
    out: dict[str, Any] = {}
    prompts = texts(64)
    options: dict[str, Any] = {"skip_tokenizer_init": True, "max_num_seqs": 64, "num_gpu_blocks_override": 2000}
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(make_tiny_llama(Path(scratch) / "small", tokenizer=False, **SMALL))
        found: dict[str, torch.Tensor] = {}
        for name, more in {
            "cpu": {"device": "cpu"},
            "cpu fp8": {"device": "cpu", "quantization": "fp8"},
            "fp8": {"quantization": "fp8"},
            "fp8 per tensor": {"quantization": "fp8_per_tensor"},
            "bf16, fp8 pages": {"kv_cache_dtype": "fp8"},
            "fp8, fp8 pages": {"quantization": "fp8", "kv_cache_dtype": "fp8"},
        }.items():
            with skipped(out, name), LLM(folder, **options | more) as llm:
                found[name] = torch.tensor(scores(llm, prompts[:8]))
        for one, other in (("fp8", "cpu fp8"), ("fp8", "cpu"), ("fp8 per tensor", "cpu"), ("bf16, fp8 pages", "cpu"),
                           ("fp8, fp8 pages", "cpu")):  # fmt: skip
            if one in found and other in found:
                out[f"logprob_error_mean: {one} from {other}"] = float((found[one] - found[other]).abs().mean())
        for name, more in {"bf16": {}, "fp8": {"quantization": "fp8"}, "fp8 pages": {"kv_cache_dtype": "fp8"}}.items():
            with skipped(out, f"invariant {name}"), LLM(folder, **options, batch_invariant=True, **more) as llm:
                out[f"invariant {name}"] = invariance(llm, prompts)
    return out


def invariance(llm: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    """Whether logprobs are the same, to the bit: alone and in a batch of 64, decoded and as a prompt."""
    decode = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1)
    start = time.perf_counter()
    together = [result.outputs[0] for result in llm.generate(prompts, decode, use_tqdm=False)]
    took = time.perf_counter() - start

    def drawn(output: Any) -> list[float]:
        return [entry.logprob for entry in output.logprobs]

    alone = [llm.generate([prompt], decode, use_tqdm=False)[0].outputs[0] for prompt in prompts[:8]]
    whole = [prompt + list(answer.token_ids) for prompt, answer in zip(prompts, together, strict=True)]
    score = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    scored = llm.generate(whole, score, use_tqdm=False)
    again = [
        [entry.logprob for entry in result.prompt_logprobs[len(prompt) :]]
        for prompt, result in zip(prompts, scored, strict=True)
    ]
    return {
        "seconds_of_64": took,
        "alone_equals_batch": sum(
            a.token_ids == b.token_ids and drawn(a) == drawn(b) for a, b in zip(alone, together, strict=False)
        ),
        "of": len(alone),
        "decode_equals_prompt": sum(drawn(a) == b for a, b in zip(together, again, strict=True)),
        "of_all": len(prompts),
        "largest_difference": max(
            abs(x - y) for a, b in zip(together, again, strict=True) for x, y in zip(drawn(a), b, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="checks,products,models")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    arguments = parser.parse_args()
    record: dict[str, Any] = environment()
    record["command"] = "python benchmarks/gpu_fp8.py " + " ".join(sys.argv[1:])
    parts: dict[str, Callable[[], Any]] = {
        "checks": checks,
        "products": lambda: {"glue": glue()} | products([int(m) for m in arguments.rows.split(",")]),
        "models": models,
    }
    for name in arguments.only.split(","):
        start = time.perf_counter()
        with skipped(record, name):
            record[name] = parts[name]()
        record[f"{name}_seconds"] = time.perf_counter() - start
        if name != "products":
            print(name, json.dumps(record[name], indent=1), flush=True)
        if arguments.json:  # whatever comes later
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
