"""Step inputs built on the device against the same built row by row, over random steps that share tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.kernels.triton.prepare_step import pack_step, packed_size, prepare_step, write_blocks

PAGE = 4


def run(plan: dict, table: torch.Tensor, last: torch.Tensor, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    device = table.device
    buffer = np.full(4000, -7, np.int32)
    size = pack_step(buffer, **plan)
    packed = torch.from_numpy(buffer[:size].copy()).to(device)
    out = {
        "token_ids": torch.full((tokens,), -9, dtype=torch.int64, device=device),
        "positions": torch.full((tokens,), -9, dtype=torch.int32, device=device),
        "slot_mapping": torch.full((tokens,), -9, dtype=torch.int64, device=device),
        "seq_lens": torch.full((rows,), -9, dtype=torch.int32, device=device),
        "query_start_loc": torch.full((rows + 1,), -9, dtype=torch.int32, device=device),
        "batch_block_table": torch.full((rows, table.shape[1]), -9, dtype=torch.int32, device=device),
    }
    write_blocks(packed, table)
    prepare_step(packed, table, last, **out, page_size=PAGE)
    return {name: tensor.cpu() for name, tensor in out.items()}


def random_plan(rng: np.random.Generator, num_seqs: int, table: np.ndarray) -> dict:
    """A step of random rows whose pages are written, in part, by the step itself; `table` follows."""
    rows = rng.permutation(num_seqs)[: rng.integers(1, num_seqs + 1)].astype(np.int32)
    query_lens = rng.integers(1, 9, len(rows)).astype(np.int32)
    query_lens[rng.random(len(rows)) < 0.5] = 1
    contexts = rng.integers(0, 20, len(rows)).astype(np.int32)
    from_host = (query_lens > 1) | (rng.random(len(rows)) < 0.3)
    run_rows, starts, counts, pages = [], [], [], []
    for row, context, query in zip(rows, contexts, query_lens, strict=True):
        first, last = rng.integers(0, 3), -(-int(context + query) // PAGE)
        new = rng.integers(0, 1000, max(0, last - first)).astype(np.int32)
        if len(new):
            table[row, first:last] = new
            run_rows.append(row), starts.append(first), counts.append(len(new)), pages.append(new)
    return {
        "rows": rows, "query_lens": query_lens, "context_lens": contexts, "from_host": from_host,
        "token_ids": rng.integers(0, 50000, int(query_lens[from_host].sum())).astype(np.int32),
        "block_rows": np.array(run_rows, np.int32), "block_starts": np.array(starts, np.int32),
        "block_counts": np.array(counts, np.int32),
        "block_pages": np.concatenate([*pages, np.empty(0, np.int32)]).astype(np.int32),
    }  # fmt: skip


def test_random_steps(device):
    rng = np.random.default_rng(0)
    num_seqs, expected_table = 6, np.zeros((6, 10), np.int32)
    table = torch.zeros(6, 10, dtype=torch.int32, device=device)
    for _ in range(6):
        last = rng.integers(0, 50000, num_seqs).astype(np.int32)
        plan = random_plan(rng, num_seqs, expected_table)
        out = run(plan, table, torch.from_numpy(last).to(device), rows=8, tokens=60)
        assert np.array_equal(table.cpu().numpy(), expected_table)
        check(plan, out, expected_table, last)


def check(plan: dict, out: dict[str, torch.Tensor], table: np.ndarray, last: np.ndarray) -> None:
    host = iter(plan["token_ids"].tolist())
    at = 0
    for r, row in enumerate(plan["rows"]):
        context, query = int(plan["context_lens"][r]), int(plan["query_lens"][r])
        assert out["query_start_loc"][r] == at
        assert out["seq_lens"][r] == context + query
        for i in range(query):
            position = context + i
            assert out["token_ids"][at] == (next(host) if plan["from_host"][r] else last[row])
            assert out["positions"][at] == position
            assert out["slot_mapping"][at] == table[row, position // PAGE] * PAGE + position % PAGE
            at += 1
        blocks = -(-(context + query) // PAGE)
        assert out["batch_block_table"][r, :blocks].tolist() == table[row, :blocks].tolist()
        assert (out["batch_block_table"][r, blocks:] == -9).all()
    padded = len(plan["rows"])
    assert (out["seq_lens"][padded:] == 0).all()
    assert (out["query_start_loc"][padded:] == at).all()
    assert (out["slot_mapping"][at:] == -1).all()
    assert (out["token_ids"][at:] == 0).all()
    assert (out["positions"][at:] == 0).all()


def test_a_buffer_too_small_is_refused():
    plan = random_plan(np.random.default_rng(1), 4, np.zeros((4, 10), np.int32))
    need = packed_size(*(len(plan[name]) for name in ("rows", "token_ids", "block_rows", "block_pages")))
    with pytest.raises(ValueError, match="elements"):
        pack_step(np.empty(need - 1, np.int32), **plan)
    assert pack_step(np.empty(need, np.int32), **plan) == need
