"""The rows of live sequences, and how a plan's differences change them.

On a CPU the tables are numpy arrays that share their memory with torch tensors; `prepare` is then a dozen
vectorised operations. A GPU keeps the same tables on the device and does the same in one kernel.
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.attention import AttentionMetadata
from octavo.plan import Int32Array, StepPlan


class RowTable:
    """Block table and last token of each row.

    Attributes:
        block_table: int32 [max_num_seqs, max_blocks]; entries beyond a sequence's pages are stale, never read.
        last_token: int32 [max_num_seqs], the token sampled last in the row.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, page_size: int):
        self.page_size = page_size
        max_blocks = -(-max_model_len // page_size)
        self._block_table = np.zeros((max_num_seqs, max_blocks), np.int32)
        self._last_token = np.zeros(max_num_seqs, np.int32)
        self.block_table = torch.from_numpy(self._block_table)
        self.last_token = torch.from_numpy(self._last_token)

    def apply(self, plan: StepPlan) -> None:
        """Write the plan's new block-table entries."""
        if len(plan.block_rows) == 0:
            return
        counts = plan.block_counts
        rows = np.repeat(plan.block_rows, counts)
        self._block_table[rows, np.repeat(plan.block_starts, counts) + ramps(counts)] = plan.block_pages

    def token_ids(self, plan: StepPlan) -> torch.Tensor:
        """int64 [T]: ids from the plan where the host knows them, else each row's last sampled token."""
        ids = np.empty(plan.num_tokens, np.int64)
        if plan.from_host.all():
            ids[:] = plan.token_ids
        else:
            from_host = np.repeat(plan.from_host, plan.query_lens)
            ids[from_host] = plan.token_ids
            ids[~from_host] = self._last_token[plan.rows[~plan.from_host]]
        return torch.from_numpy(ids)

    def metadata(self, plan: StepPlan) -> AttentionMetadata:
        """Where each token of the step stands, and which slot of which page it is written to."""
        query_lens, contexts = plan.query_lens, plan.context_lens
        positions = np.repeat(contexts, query_lens) + ramps(query_lens)
        rows = np.repeat(plan.rows, query_lens)
        pages = self._block_table[rows, positions // self.page_size].astype(np.int64)
        slots = pages * self.page_size + positions % self.page_size
        starts = np.zeros(len(query_lens) + 1, np.int32)
        np.cumsum(query_lens, out=starts[1:])
        seq_lens = contexts + query_lens
        longest = int(seq_lens.max())
        table = self._block_table[plan.rows, : -(-longest // self.page_size)]
        return AttentionMetadata(
            query_start_loc=torch.from_numpy(starts),
            seq_lens=torch.from_numpy(seq_lens),
            block_table=torch.from_numpy(table),
            slot_mapping=torch.from_numpy(slots),
            positions=torch.from_numpy(positions),
            max_query_len=int(query_lens.max()),
            max_seq_len=longest,
        )

    def store_samples(self, rows: Int32Array, tokens: torch.Tensor) -> None:
        """Keep the sampled tokens where the next step finds them."""
        self._last_token[rows] = tokens.numpy()


def ramps(counts: Int32Array) -> Int32Array:
    """[2, 3] → [0, 1, 0, 1, 2], int32."""
    ends = np.cumsum(counts, dtype=np.int32)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int32) - np.repeat(ends - counts, counts).astype(np.int32)
