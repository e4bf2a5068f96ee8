"""A model without numbers: it stores token ids in pages, and its next token is a hash of what the pages say.

Everything goes through the plan's block tables, slots and copies, in the order of the plans, with results one step late
if asked. A wrong table, a stale page, a missing copy or an unsafe reuse changes a hash and so the text.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque

import numpy as np

from octavo.plan import LogprobArrays, NewRow, StepPlan, StepResult


class FakeRunner:
    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int,
        num_host_slots: int = 0,
    ):
        self.page_size, self.vocab_size = page_size, vocab_size
        self.pages = np.full((num_pages, page_size), -1, np.int64)
        self.host = np.full((num_host_slots, page_size), -1, np.int64)
        self.table = np.full((max_num_seqs, -(-max_model_len // page_size)), -1, np.int64)
        self.last = np.full(max_num_seqs, -1, np.int64)
        self.rows: dict[int, NewRow] = {}
        self.counts: dict[int, Counter[int]] = {}  # of rows with penalties: what a sampler would count
        self.fail_rows: set[int] = set()

    def run(self, plan: StepPlan) -> StepResult:
        self._apply(plan)
        ids = iter(plan.token_ids.tolist())
        contents = []
        for row, query, context, from_host in zip(
            plan.rows.tolist(),
            plan.query_lens.tolist(),
            plan.context_lens.tolist(),
            plan.from_host.tolist(),
            strict=True,
        ):
            assert query >= 1 and (from_host or query == 1)
            new = [next(ids) for _ in range(query)] if from_host else [int(self.last[row])]
            for position, token in enumerate(new, context):
                self.pages[self.table[row, position // self.page_size], position % self.page_size] = token
            contents.append((row, context + query))
        assert next(ids, None) is None
        read = [self._read(row, length) for row, length in contents]
        tokens = []
        for (row, _), text, sample in zip(contents, read, plan.sample.tolist(), strict=True):
            if sample:
                tokens.append(self._draw(text, self.rows[row]))
                self.last[row] = tokens[-1]
                if row in self.counts:
                    assert self.counts[row] == Counter(text), "the tokens to penalise are not the sequence's"
                    self.counts[row][tokens[-1]] += 1
        failed = tuple(i for i, row in enumerate(plan.rows.tolist()) if row in self.fail_rows)
        result = np.array(tokens, np.int32)
        return StepResult(plan.step, result, self._logprobs(result), self._scores(plan), failed)

    def _apply(self, plan: StepPlan) -> None:
        for row in plan.free_rows.tolist():
            del self.rows[row]
            self.counts.pop(row, None)
            self.table[row] = -1
        for new in plan.new_rows:
            assert new.row not in self.rows
            self.rows[new.row] = new
            params = new.params
            if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
                self.counts[new.row] = Counter(new.token_ids.tolist())
            else:
                assert len(new.token_ids) == 0
        at = 0
        for row, start, count in zip(
            plan.block_rows.tolist(), plan.block_starts.tolist(), plan.block_counts.tolist(), strict=True
        ):
            self.table[row, start : start + count] = plan.block_pages[at : at + count]
            at += count
        for page, slot in plan.swap_out.tolist():
            self.host[slot] = self.pages[page]
        for page, slot in plan.swap_in.tolist():
            self.pages[page] = self.host[slot]
        for source, destination in plan.copy_pages.tolist():
            self.pages[destination] = self.pages[source]
        ones = plan.query_lens == 1
        assert not (ones[1:] & ~ones[:-1]).any(), "rows with one token come first"
        fresh = ~ones & (plan.context_lens == 0)
        assert not (fresh[:-1] & ~fresh[1:]).any(), "what begins a sequence comes last"

    def _read(self, row: int, length: int) -> list[int]:
        where = np.arange(length)
        return self.pages[self.table[row, where // self.page_size], where % self.page_size].tolist()

    def _draw(self, text: list[int], row: NewRow) -> int:
        digest = hashlib.sha256(repr((text, row.seed)).encode()).digest()
        token = int.from_bytes(digest[:4], "little") % self.vocab_size
        if row.stop_ids and len(text) - row.num_prompt_tokens < row.params.min_tokens:
            while token in row.stop_ids:
                token = (token + 1) % self.vocab_size
        return token

    @staticmethod
    def _logprobs(tokens: np.ndarray) -> LogprobArrays:
        """The logprob of token t is -t, of its "top" tokens -t - i, so that records can be traced."""
        top = tokens[:, None] + np.arange(4, dtype=np.int32)
        return LogprobArrays(-tokens.astype(np.float32), np.ones(len(tokens), np.int32), top, -top.astype(np.float32))

    def _scores(self, plan: StepPlan) -> tuple[LogprobArrays, ...]:
        return tuple(self._logprobs(entry.targets) for entry in plan.prompt_logprobs)


class Pipeline:
    """Runs plans at once but hands results over one step late, as a device that runs ahead would."""

    def __init__(self, runner: FakeRunner):
        self._runner = runner
        self._results: deque[StepResult] = deque()

    def launch(self, plan: StepPlan) -> None:
        self._results.append(self._runner.run(plan))

    def settle(self) -> StepResult:
        return self._results.popleft()

    def __len__(self) -> int:
        return len(self._results)
