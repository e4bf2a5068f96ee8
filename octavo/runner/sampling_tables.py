"""Sampling parameters of the rows on a GPU, written in one go for all rows that a plan begins."""

from __future__ import annotations

import numpy as np
import torch

from octavo.kernels.triton.process_logits import SamplingTables
from octavo.plan import NewRow, StepPlan

_HAS_MASK, _HAS_PENALTIES, _WANTS_RANK = 1, 2, 4


class DeviceRows:
    """The device's tables, and what of them the host must know.

    Attributes:
        logprobs: for each row how many top logprobs it wants; None wants none.
    """

    def __init__(self, num_rows: int, vocab_size: int, device: torch.device):
        self.tables = SamplingTables.empty(num_rows, vocab_size, device)
        self.logprobs: list[int | None] = [None] * num_rows
        self._vocab_size, self._device = vocab_size, device

    def update(self, plan: StepPlan) -> None:
        """Set the rows that the plan begins, and what grammars allow. Rows that end need nothing."""
        if plan.new_rows:
            self._begin(plan)
        if len(plan.mask_rows):
            self.tables.mask.index_copy_(0, self._send(plan.mask_rows.astype(np.int64)), self._send(plan.masks))

    def _begin(self, plan: StepPlan) -> None:
        """Set the rows that the plan begins; their next owner sets everything."""
        count = len(plan.new_rows)
        floats, ints = np.zeros((count, 8), np.float32), np.zeros((count, 8), np.int32)
        seeds = np.zeros(count, np.int64)
        for i, new in enumerate(plan.new_rows):
            params = new.params
            floats[i, :6] = (
                params.temperature,
                params.top_p,
                params.min_p,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            )
            ints[i, :6] = (
                max(params.top_k, 0),
                new.num_prompt_tokens,
                params.min_tokens,
                len(params.logit_bias or ()),
                len(new.stop_ids),
                self._flags(new),
            )
            seeds[i] = np.uint64(new.seed).astype(np.int64)
            self.logprobs[new.row] = params.logprobs
        rows = self._send(np.array([new.row for new in plan.new_rows], np.int64))
        for table, values in ((self.tables.floats, floats), (self.tables.ints, ints), (self.tables.seeds, seeds)):
            table.index_copy_(0, rows, self._send(values))
        for new in plan.new_rows:
            self._set_lists(new)

    def _send(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).pin_memory().to(self._device, non_blocking=True)

    @staticmethod
    def _flags(new: NewRow) -> int:
        params = new.params
        masked = params.allowed_token_ids is not None or bool(params.banned_token_ids)
        masked |= params.structured_outputs is not None  # its mask comes with every step
        penalised = params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
        ranked = params.logprobs is not None
        return masked * _HAS_MASK | penalised * _HAS_PENALTIES | ranked * _WANTS_RANK

    def _set_lists(self, new: NewRow) -> None:
        """What only few rows have: biases, stop ids, masks, penalty counts."""
        params, tables, row = new.params, self.tables, new.row
        if params.logit_bias:
            count = len(params.logit_bias)
            tables.bias_ids[row, :count] = self._send(np.array(list(params.logit_bias), np.int32))
            tables.bias_values[row, :count] = self._send(np.array(list(params.logit_bias.values()), np.float32))
        if new.stop_ids:
            tables.stop_ids[row, : len(new.stop_ids)] = self._send(np.array(new.stop_ids, np.int32))
        flags = self._flags(new)
        if flags & _HAS_MASK:
            allowed = np.full(self._vocab_size, params.allowed_token_ids is None)
            allowed[list(params.allowed_token_ids or ())] = True
            allowed[list(params.banned_token_ids)] = False
            tables.mask[row] = self._send(_bits(allowed))
        if flags & _HAS_PENALTIES:
            prompt = np.zeros(self._vocab_size, np.bool_)
            prompt[new.token_ids[: new.num_prompt_tokens]] = True
            counts = np.bincount(new.token_ids[new.num_prompt_tokens :], minlength=self._vocab_size)
            tables.in_prompt[row] = self._send(_bits(prompt))
            tables.counts[row] = self._send(np.minimum(counts, 32766).astype(np.int16))


def _bits(flags: np.ndarray) -> np.ndarray:
    """bool [V] → int32 [(V + 31) // 32], bit i of word w for 32 w + i."""
    padded = np.zeros(-(-len(flags) // 32) * 32, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.int32)
