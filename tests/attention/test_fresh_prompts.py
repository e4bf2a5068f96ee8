"""A step's rows, put together from kernels for some of them each, against paged attention over all of them.

FA3's own kernel is for a GPU; here the arguments that it is called with are computed by torch.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from octavo.attention import AttentionMetadata, attend
from octavo.attention.fa3 import Fa3Fresh, choose_fa3_fresh
from octavo.kernels.rope_and_cache import rope_and_cache

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 8


def causal(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, out: torch.Tensor, **options: Any) -> None:
    """What FA3 does with sequences one behind the other: causal attention of each over itself."""
    starts = options["cu_seqlens_q"].tolist()
    assert starts == options["cu_seqlens_k"].tolist() and options["is_causal"] and starts[0] == 0
    assert options["max_seqlen_q"] == options["max_seqlen_k"] == max(np.diff(starts))
    for start, end in itertools.pairwise(starts):
        part = [t[start:end].transpose(0, 1)[None] for t in (q, keys, values)]
        attended = torch.nn.functional.scaled_dot_product_attention(
            *part, is_causal=True, scale=options["softmax_scale"], enable_gqa=True
        )
        out[start:end] = attended[0].transpose(0, 1)


@pytest.mark.parametrize(
    ("queries", "contexts"),
    [([5, 9], [0, 0]), ([1, 1, 4, 6, 7], [3, 12, 9, 0, 0]), ([1, 3], [0, 5]), ([1], [0]), ([2, 2], [4, 0])],
)
def test_the_parts_of_a_step_are_the_whole(
    queries: list[int], contexts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend_rows = pytest.importorskip("octavo.runner.attend_rows", reason="it brings Triton's kernels")
    generator = torch.Generator().manual_seed(0)
    query_lens, context_lens = np.array(queries, np.int32), np.array(contexts, np.int32)
    tokens, rows = int(query_lens.sum()), len(queries)
    starts = torch.tensor([0, *np.cumsum(query_lens)], dtype=torch.int32)
    table = torch.arange(rows * 4, dtype=torch.int32).view(rows, 4)
    positions = torch.cat([torch.arange(c, c + n) for c, n in zip(contexts, queries, strict=True)]).int()
    row_of = torch.repeat_interleave(torch.arange(rows), torch.tensor(queries))
    slots = table[row_of, positions // PAGE].long() * PAGE + positions % PAGE
    metadata = AttentionMetadata(starts, torch.tensor(context_lens + query_lens), table, slots, positions, 9, 32)
    caches = [torch.randn(rows * 4, KV_HEADS, PAGE, DIM, generator=generator) for _ in range(2)]
    qkv = torch.randn(tokens, (HEADS + 2 * KV_HEADS) * DIM, generator=generator)
    q = rope_and_cache(
        qkv, torch.randn(32, DIM, generator=generator), positions, slots, *caches, HEADS, KV_HEADS, DIM, keep_keys=True
    )
    whole = attend(q, *caches, metadata, 0.25)

    first = attend_rows.fresh_from(query_lens, context_lens)
    assert all(n > 1 and c == 0 for n, c in zip(queries[first:], contexts[first:], strict=True))

    def over_pages(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        out[: starts[first]] = attend(q, keys, values, metadata, scale)[: starts[first]]

    fresh = Fa3Fresh(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM)
    if first < rows:
        monkeypatch.setattr(torch.ops, "flash_attn_3", SimpleNamespace(fwd=causal), raising=False)
        fresh.begin(starts, first_row=first, first_token=int(starts[first]), longest=max(queries[first:]))
    step = attend_rows.attention_of(over_pages if first else None, fresh=fresh if first < rows else None)
    found = step(q, *caches, metadata, 0.25, None, qkv)
    assert torch.allclose(found, whole, atol=1e-5)


def test_a_cpu_has_no_kernel_for_them() -> None:
    heads = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": 64}
    assert choose_fa3_fresh("auto", torch.device("cpu"), torch.float8_e4m3fn, **heads) is None
