"""Sharing in the steps of a GPU: the groups of each step, sent to the device only when they change."""

from __future__ import annotations

import torch

from octavo.kernels.triton.shared_prefix import SharedPrefix, pack_groups, shared_prefix_tuning
from octavo.plan import StepPlan
from octavo.runner.prefix_groups import Grouping, PrefixGroups, SharingCost

MAX_HEAD_DIM = 128  # that the kernel's tiles leave room for in shared memory
FEWEST_ROWS = 4


def shared_sizes(sizes: list[int]) -> list[int]:
    """The numbers of rows, of those that graphs are captured for, for which there is one with sharing too: about half
    of them. What a step of more rows saves is worth some padding.
    """
    return [size for size in sizes if (size >= FEWEST_ROWS and size % _step(size) == 0) or size == sizes[-1]]


def _step(size: int) -> int:
    return 4 if size < 16 else 16 if size <= 64 else 32 if size <= 256 else 64 if size <= 512 else 128


class SharedPages:
    """Which single-token rows of a step share pages, on the host, and the kernel that reads those once.

    Attributes:
        kernel: to be planned once a step and called once a layer, before `PagedDecode`.

    Args:
        num_kv_heads, group, head_dim, page_size: of the attention.
        max_rows, max_blocks: of the block tables.
        cost: decides which groups a step has, if any.
        ring: steps that may be on their way; the buffers that are sent are used in turn.
        tuning: of the kernel, where it is not `shared_prefix_tuning`'s.
    """

    def __init__(
        self,
        *,
        num_kv_heads: int,
        group: int,
        head_dim: int,
        page_size: int,
        max_rows: int,
        max_blocks: int,
        cost: SharingCost,
        ring: int,
        device: torch.device,
        **tuning: int,
    ):
        self.kernel = SharedPrefix(
            num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, page_size=page_size, max_rows=max_rows,
            device=device, **(shared_prefix_tuning() | tuning),
        )  # fmt: skip
        self._groups = PrefixGroups(max_rows, max_blocks, page_size, self.kernel.tile, cost)
        pinned = device.type == "cuda"
        self._host = [torch.zeros_like(self.kernel.groups, device="cpu") for _ in range(ring)]
        self._host = [buffer.pin_memory() if pinned else buffer for buffer in self._host]
        self._sent: Grouping | None = None

    def update(self, plan: StepPlan) -> None:
        """Take in what a plan writes to the block tables; every plan, in order."""
        self._groups.update(plan)

    def begin(self, plan: StepPlan, slot: int) -> bool:
        """Whether this step's single-token rows are to share; if so, their groups are on their way to the device.

        Args:
            slot: of the ring; what it sent before has arrived.
        """
        singles = int((plan.query_lens == 1).sum())  # they come first
        if singles < 2:
            return False
        found = self._groups.group(plan.rows[:singles], plan.context_lens[:singles])
        if found is None:
            return False
        if found is not self._sent:
            host = self._host[slot]
            pack_groups(host.numpy(), found.members, found.counts, found.lengths, self.kernel.members_per_tile)
            self.kernel.groups.copy_(host, non_blocking=True)
            self._sent = found
        return True
