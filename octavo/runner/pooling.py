"""From the hidden states of a step to embeddings: the last token's state, or the mean over all of a prompt's.

The last token's needs nothing but the chunk that ends the prompt, so prefix hits and chunks are as for any prompt. The
mean is summed over the chunks in float32, one sum a row; the scheduler gives such a prompt no prefix hits, and starts
it from the beginning after a preemption.
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.plan import Float32Array, StepPlan


class Pooler:
    """The sums of prompts that are under way. Rows that are given up are dropped by `forget`."""

    def __init__(self) -> None:
        self._sums: dict[int, torch.Tensor] = {}

    def forget(self, plan: StepPlan) -> None:
        """Drop the sums of rows that the plan frees."""
        if self._sums:
            for row in plan.free_rows.tolist():
                self._sums.pop(row, None)

    def pool(self, plan: StepPlan, hidden: torch.Tensor) -> tuple[tuple[Float32Array, ...], tuple[int, ...]]:
        """Take a step's chunks.

        Args:
            hidden: [T, hidden_size], after the final norm, of the step's tokens.

        Returns:
            float32 [hidden_size] for each entry of `plan.pooling` that ends its prompt, and the indices of rows whose
            embedding is not finite.
        """
        if not plan.pooling:
            return (), ()
        vectors: list[Float32Array] = []
        failed: list[int] = []
        starts = np.cumsum(plan.query_lens) - plan.query_lens
        for entry in plan.pooling:
            row, count = int(plan.rows[entry.index]), int(plan.query_lens[entry.index])
            start = int(starts[entry.index])
            part = hidden[start : start + count]
            if entry.kind == "mean":
                vector = self._add(row, part, first=plan.context_lens[entry.index] == 0)
            else:
                vector = part[-1].float()
            if not entry.last:
                continue
            if entry.kind == "mean":
                vector = self._sums.pop(row) / int(plan.context_lens[entry.index] + count)
            values = vector.cpu().numpy()
            vectors.append(values)
            if not np.isfinite(values).all():
                failed.append(entry.index)
        return tuple(vectors), tuple(failed)

    def _add(self, row: int, part: torch.Tensor, *, first: bool) -> torch.Tensor:
        total = part.sum(dim=0, dtype=torch.float32)
        if not first:
            total += self._sums[row]
        self._sums[row] = total
        return total
