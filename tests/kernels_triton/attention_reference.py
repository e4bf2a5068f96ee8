"""Attention over paged keys and values in float64, one row at a time, and the random cases to compare on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Case:
    """Inputs of paged attention. Slots of pages that belong to no key hold NaN."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    query_start_loc: torch.Tensor
    scale: float
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    def arguments(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seq_lens, self.query_start_loc


def make_case(
    seq_lens: list[int],
    query_lens: list[int],
    *,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype = torch.bfloat16,
    fp8: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Case:
    """Random q, k, v on shuffled pages; block-table entries past a row's pages are far out of range."""
    g = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in seq_lens]
    num_pages = sum(counts) + 3
    order = torch.randperm(num_pages, generator=g).int()
    table = torch.full((len(seq_lens), max(counts) + 2), 1 << 28, dtype=torch.int32)
    used = torch.zeros(num_pages, page_size, dtype=torch.bool)
    for r, (n, count) in enumerate(zip(seq_lens, counts, strict=True)):
        pages, order = order[:count], order[count:]
        table[r, :count] = pages
        for i, page in enumerate(pages.tolist()):
            used[page, : min(page_size, n - i * page_size)] = True
    caches = []
    for _ in range(2):
        values = torch.randn(num_pages, num_kv_heads, page_size, head_dim, generator=g)
        values.masked_fill_(~used[:, None, :, None], math.nan)
        caches.append(values.to(torch.float8_e4m3fn if fp8 else dtype).to(device))
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    q = torch.randn(int(starts[-1]), num_kv_heads * group, head_dim, generator=g).to(dtype)
    scales = [torch.rand(num_kv_heads, generator=g).add(0.5).to(device) if fp8 else None for _ in range(2)]
    return Case(
        q.to(device), caches[0], caches[1], table.to(device), torch.tensor(seq_lens, dtype=torch.int32, device=device),
        starts.to(device), head_dim**-0.5, *scales,
    )  # fmt: skip


def reference(
    case: Case, *, window: int = 0, softcap: float = 0.0, alibi_slopes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output float64 [T, heads, dim], logsumexp of the scores float64 [T, heads]), on the CPU."""
    q = case.q.cpu().double()
    page_size = case.k_cache.shape[2]
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:2], dtype=torch.float64)
    starts = case.query_start_loc.tolist()
    for r, n in enumerate(case.seq_lens.tolist()):
        a, b = starts[r], starts[r + 1]
        if n == 0 or a == b:
            continue
        pages = case.block_table[r, : -(-n // page_size)].long()
        keys, values = (
            _rows(cache, pages, n, scale, q.shape[1])
            for cache, scale in ((case.k_cache, case.k_scale), (case.v_cache, case.v_scale))
        )
        scores = torch.einsum("thd,hnd->thn", q[a:b], keys) * case.scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        position, key = torch.arange(n - (b - a), n)[:, None, None], torch.arange(n)[None, None]
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.cpu().double()[None, :, None] * (key - position)
        seen = (key <= position) & ((key > position - window) if window else torch.tensor(True))
        scores = scores.masked_fill(~seen, -math.inf)
        lse[a:b] = scores.logsumexp(-1)
        out[a:b] = torch.einsum("thn,hnd->thd", scores.softmax(-1), values)
    return out, lse


def _rows(cache: torch.Tensor, pages: torch.Tensor, n: int, scale: torch.Tensor | None, num_heads: int) -> torch.Tensor:
    """float64 [query heads, n, dim]."""
    rows = cache.view(torch.uint8)[pages.to(cache.device)].view(cache.dtype).cpu().double()
    rows = rows.transpose(0, 1).flatten(1, 2)[:, :n]
    if scale is not None:
        rows = rows * scale.cpu().double()[:, None, None]
    return rows.repeat_interleave(num_heads // rows.shape[0], 0)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected|; infinite if anything is not finite."""
    actual = actual.cpu().double()
    if not actual.isfinite().all():
        return math.inf
    return float((actual - expected).norm() / expected.norm())
