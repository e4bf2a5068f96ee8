"""Compile the launches of every kernel for a GPU that is not there. Run: compile_ahead.py {sm_80,sm_90,gfx942}.

The ops are called on CPU tensors with the launch replaced by a recorder, so what is compiled is what an engine would
launch. Prints one JSON object a line: kernel, bytes of shared memory.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.triton.copy_pages import PageCopier
from octavo.kernels.triton.embedding import embedding
from octavo.kernels.triton.gated_linear import EVERY_TILE, GatedTile, gated_linear
from octavo.kernels.triton.gemv import gemv
from octavo.kernels.triton.invariant_attention import InvariantAttention
from octavo.kernels.triton.invariant_linear import InvariantTile, invariant_linear
from octavo.kernels.triton.launch import pipeline_stages
from octavo.kernels.triton.paged_decode import PagedDecode
from octavo.kernels.triton.paged_extend import PagedExtend
from octavo.kernels.triton.prepare_step import prepare_step, write_blocks
from octavo.kernels.triton.process_logits import SamplingTables, process_logits
from octavo.kernels.triton.quantize import quantize_rows, scale_product
from octavo.kernels.triton.rms_norm import add_rms_norm, rms_norm_fp8
from octavo.kernels.triton.rope_and_cache import rope_and_cache
from octavo.kernels.triton.row_logsumexp import row_logsumexp
from octavo.kernels.triton.sample import Sampler
from octavo.kernels.triton.shared_prefix import SharedPrefix
from octavo.kernels.triton.silu_and_mul import silu_and_mul, silu_and_mul_fp8
from octavo.kernels.triton.skinny_fp8 import skinny_fp8
from octavo.kernels.triton.skinny_linear import SplitSpace, Tuning, skinny_linear
from octavo.kernels.triton.swap_pages import PageSwapper
from octavo.kernels.triton.warm_up import recorded
from octavo.kernels.tuned_fp8 import candidates

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32", torch.int64: "i64", torch.uint32: "u32", torch.uint8: "u8",
    torch.int8: "i8", torch.int16: "i16", torch.bool: "i1",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "launch_pdl", "maxnreg")

Compilable = tuple[JITFunction, dict[str, Any], dict[str, Any]]


def record(calls: list[Callable[[], object]]) -> list[Compilable]:
    """(kernel, arguments by name, compile options) of every launch that `calls` make."""
    with recorded() as launches:
        for call in calls:
            call()
    out: list[Compilable] = []
    for kernel, _, args, kwargs in launches.values():
        options = {k: v for k, v in kwargs.items() if k in _OPTIONS}
        named = {k: v for k, v in kwargs.items() if k not in _OPTIONS}
        out.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | named, options))
    return out


def compile_launch(kernel: JITFunction, arguments: dict[str, Any], options: dict[str, Any], target: GPUTarget) -> Any:
    """As the launcher specializes: constants, None and 1 are compiled in, multiples of 16 noted."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, TensorDescriptor):
            block = ",".join(map(str, value.block_shape))
            signature[parameter.name] = f"tensordesc<{_TYPES[value.base.dtype]}[{block}]>"
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or value == 1:
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


def attention_calls(fp8: bool, **options: Any) -> list[Callable[[], object]]:
    """Decode and prompt attention of Llama 3.1 8B's shape."""
    kv = torch.empty(4, 8, 64, 128, dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16)
    q, out = torch.empty(8, 32, 128, dtype=torch.bfloat16), torch.empty(8, 32, 128, dtype=torch.bfloat16)
    table, lens, starts = (torch.zeros(n, dtype=torch.int32) for n in (64, 4, 5))
    table = table.view(4, 16)
    scale = torch.ones(8) if fp8 else None
    shape = {"num_kv_heads": 8, "group": 4, "head_dim": 128, "page_size": 64} | options
    decode = PagedDecode(**shape, max_rows=4, device=q.device)
    extend = PagedExtend(**shape)
    shared = SharedPrefix(**shape, max_rows=4, device=q.device)
    invariant = InvariantAttention(**shape, max_keys=4096, device=q.device)
    scales = {"k_scale": scale, "v_scale": scale}
    tiles = torch.zeros(3, 2, dtype=torch.int32)
    return [
        lambda: decode.plan(lens, starts),
        lambda: decode(q, kv, kv, table, lens, starts, 0.1, out, **scales),
        shared.plan,
        lambda: shared(q, kv, kv, table, 0.1, k_scale=scale),
        lambda: decode.plan(lens, starts, shared.state[0]),
        lambda: decode(q, kv, kv, table, lens, starts, 0.1, out, shared=shared.state, **scales),
        lambda: extend(q, kv, kv, table, lens, starts, tiles, 0.1, out, **scales),
        lambda: invariant(q, kv, kv, table, lens, starts, tiles, 0.1, out, **scales),
    ]


def glue_calls(fp8: bool) -> list[Callable[[], object]]:
    x = torch.empty(8, 4096, dtype=torch.bfloat16)
    weight, ints, longs = (
        torch.empty(4096, dtype=torch.bfloat16),
        torch.zeros(64, dtype=torch.int32),
        torch.zeros(8).long(),
    )
    qkv, gate_up = torch.empty(8, 6144, dtype=torch.bfloat16), torch.empty(8, 28672, dtype=torch.bfloat16)
    kv = torch.empty(4, 8, 64, 128, dtype=torch.bfloat16)
    table = torch.zeros(4, 16, dtype=torch.int32)
    inputs = {"token_ids": longs, "positions": longs, "slot_mapping": longs, "seq_lens": ints[:4]}
    inputs |= {"query_start_loc": ints[:5], "batch_block_table": table}
    calls: list[Callable[[], object]] = [
        lambda: add_rms_norm(x, x, weight, 1e-5),
        lambda: silu_and_mul(gate_up),
        lambda: silu_and_mul(gate_up, pairs=True),
        lambda: rope_and_cache(qkv, torch.empty(9, 128), longs, longs, kv, kv, 32, 8, 128),
        lambda: embedding(longs, x),
        lambda: write_blocks(ints, table),
        lambda: prepare_step(ints, table, ints, page_size=64, **inputs),
        lambda: PageCopier([kv, kv])(ints.view(-1, 2)),
        lambda: PageSwapper([kv, kv])(longs.view(-1, 2), to_host=True),
        lambda: PageSwapper([kv, kv])(longs.view(-1, 2), to_host=False),
    ]
    if fp8:
        calls += [
            lambda: rms_norm_fp8(x, x, weight, 1e-5),
            *(functools.partial(silu_and_mul_fp8, gate_up, pairs=pairs) for pairs in (False, True)),
        ]
    return calls


def product_calls(hopper: bool) -> list[Callable[[], object]]:
    x, weight = torch.empty(4, 4096, dtype=torch.bfloat16), torch.empty(256, 4096, dtype=torch.bfloat16)
    space, stages = SplitSpace(x.device), 4 if hopper else 2
    return [
        lambda: skinny_linear(x, weight, tuning=Tuning(16, 128, 1, stages, 2), pdl=hopper),
        lambda: skinny_linear(x, weight, weight[0], tuning=Tuning(16, 128, 2, stages, 2), space=space),
    ]


def fused_calls(fp8: bool, hopper: bool) -> list[Callable[[], object]]:
    """Products with what comes before and after them."""
    x, weight = torch.empty(200, 4096, dtype=torch.bfloat16), torch.empty(512, 4096, dtype=torch.bfloat16)
    onto, few = torch.empty(2, 512, dtype=torch.bfloat16), Tuning(64, 128, 1, 4 if hopper else 2, 4)
    calls: list[Callable[[], object]] = [
        lambda: skinny_linear(x[:4], weight, tuning=few, gated=True, pdl=hopper),
        lambda: skinny_linear(x[:2], weight, tuning=few, onto=onto, pdl=hopper),
    ]
    tiles = EVERY_TILE if hopper else (GatedTile(64, 64, 32, 2, 4, 0.0),)
    calls += [functools.partial(gated_linear, x, weight, tile=tile, pdl=hopper) for tile in tiles]
    weights: list[tuple[torch.Tensor, torch.Tensor | None]] = [(weight, None)]
    if fp8:
        weights.append((weight.view(torch.uint8)[:, :4096].contiguous().view(torch.float8_e4m3fn), torch.empty(512)))
    for rows in (1, 2):
        for stored, scales in weights:
            before = functools.partial(gemv, x[:rows], stored, scales=scales, pdl=hopper)
            calls += [functools.partial(before, gain=x[0], eps=1e-5, gated=True), before]
            calls.append(functools.partial(before, onto=onto[:rows]))
    return calls


def skinny_fp8_calls(hopper: bool) -> list[Callable[[], object]]:
    """Every candidate on Hopper, one elsewhere."""
    calls: list[Callable[[], object]] = []
    for rows in (16, 64, 128) if hopper else (16,):
        x, scales = torch.empty(rows, 4096).to(torch.float8_e4m3fn), torch.empty(rows, 1)
        weight, columns = torch.empty(4096, 4096, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.empty(4096)
        space = SplitSpace(x.device, 1 << 22)
        ways = [way for way in candidates(rows, 4096, 4096) if not isinstance(way, str)]
        for way in ways if hopper else [Tuning(16, 128, 1, 2, 2)]:
            options = {"dtype": torch.bfloat16, "tuning": way, "space": space, "pdl": hopper}
            calls.append(functools.partial(skinny_fp8, x, scales, weight, columns, **options))
    return calls


def invariant_calls(fp8: bool, stages: int = 4) -> list[Callable[[], object]]:
    x, weight = torch.empty(70, 4096, dtype=torch.bfloat16), torch.empty(256, 4096, dtype=torch.bfloat16)
    scales, columns = torch.empty(70, 1), torch.empty(256)
    calls: list[Callable[[], object]] = [
        lambda: invariant_linear(x, weight, tile=InvariantTile(stages=stages)),
        lambda: row_logsumexp(x),
        lambda: scale_product(weight[:70, :256].contiguous(), scales, columns),
    ]
    if fp8:
        e4m3 = {
            "x_scales": scales,
            "w_scales": columns,
            "dtype": torch.bfloat16,
            "tile": InvariantTile(block_k=128, stages=stages),
        }
        x8, weight8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        calls += [lambda: quantize_rows(x), lambda: invariant_linear(x8, weight8, **e4m3)]
    return calls


def sample_calls(hip: bool = False) -> list[Callable[[], object]]:
    logits, ints = torch.empty(4, 128256, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int32)
    tables, sampler = SamplingTables.empty(4, 128256, logits.device), Sampler(4, 128256, logits.device, hip=hip)
    out = {"tokens": ints, "logprobs": torch.empty(4), "ranks": ints, "failed": torch.empty(4, dtype=torch.int8)}
    return [
        lambda: process_logits(logits, ints, ints, tables, sampler.processed),
        lambda: sampler(logits, ints, ints, tables, **out, last_token=ints),
    ]


def main(name: str) -> None:
    target = TARGETS[name]
    fp8 = name != "sm_80"  # e4m3 came with sm_89
    calls = (
        attention_calls(False, num_stages=pipeline_stages(hip=target.backend == "hip"))
        + glue_calls(fp8)
        + product_calls(name == "sm_90")
        + fused_calls(fp8, name == "sm_90")
        + (skinny_fp8_calls(name == "sm_90") if fp8 else [])
        + invariant_calls(fp8, 2 if target.backend == "hip" else 4)
        + sample_calls()
    )
    for kernel, arguments, options in record(calls):
        compiled = compile_launch(kernel, arguments, options, target)
        line = {"kernel": kernel.__name__, "shared": compiled.metadata.shared}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
