"""Whose turn it is: counters of served tokens, one for each tenant (virtual token counters; Sheng et al., OSDI 2024).

Who has been served least goes first. A prompt counts when it is admitted, what was generated when it ends; a generated
token counts twice, as it costs about that much more than one of a prompt. A tenant that comes back after a pause starts
at the level of those who are being served: nobody saves up turns by being away, and nobody who only now comes has to
wait until the others' queues are empty.
"""

from __future__ import annotations

GENERATED_WEIGHT = 2


class TokenCounters:
    """The counters, in weighted tokens. All operations are O(1)."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._level = 0  # of whoever was served last: the least among those that wait

    def __getitem__(self, tenant: str) -> int:
        return self._served.get(tenant, 0)

    def enter(self, tenant: str) -> None:
        """A tenant that had nothing waiting has something."""
        self._served[tenant] = max(self[tenant], self._level)

    def admit(self, tenant: str, num_prompt_tokens: int) -> None:
        """The tenant's turn: its prompt is being computed."""
        self._level = max(self._level, self[tenant])
        self._served[tenant] = self[tenant] + num_prompt_tokens

    def charge(self, tenant: str, num_generated_tokens: int) -> None:
        """What a sequence of the tenant's generated until it ended."""
        self._served[tenant] = self[tenant] + GENERATED_WEIGHT * num_generated_tokens
