"""Responses that are kept in memory for a while, each for the key that made it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """One response.

    Attributes:
        response: JSON of the object.
        items: JSON of the whole conversation, its output last.
        num_input: how many of the items were there before the output.
    """

    response: bytes
    items: bytes
    num_input: int

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items)


class ResponseStore:
    """The newest responses: at most so many, and so many bytes; beyond it, the oldest of the key with most bytes go.

    Args:
        size: responses; 0 keeps none.
    """

    def __init__(self, size: int, max_bytes: int = MAX_BYTES):
        self.size = size
        self._max_bytes = max_bytes
        self._of: dict[str, OrderedDict[str, Stored]] = {}
        self._bytes_of: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(self._bytes_of.values())

    def get(self, tenant: str, response_id: str) -> Stored | None:
        """One of a key's responses, which is then the newest."""
        mine = self._of.get(tenant, OrderedDict())
        stored = mine.get(response_id)
        if stored is not None:
            mine.move_to_end(response_id)
        return stored

    def put(self, tenant: str, response_id: str, stored: Stored) -> None:
        """Keep a response; one that is larger than the whole store is not kept."""
        self.remove(tenant, response_id)
        if not self.size or stored.num_bytes > self._max_bytes:
            return
        self._of.setdefault(tenant, OrderedDict())[response_id] = stored
        self._bytes_of[tenant] = self._bytes_of.get(tenant, 0) + stored.num_bytes
        while len(self) > self.size or self.num_bytes > self._max_bytes:
            largest = max(self._bytes_of, key=lambda name: self._bytes_of[name])
            self.remove(largest, next(iter(self._of[largest])))

    def remove(self, tenant: str, response_id: str) -> bool:
        """Forget one of a key's responses; False if there is none of that id."""
        mine = self._of.get(tenant)
        stored = mine.pop(response_id, None) if mine is not None else None
        if mine is None or stored is None:
            return False
        self._bytes_of[tenant] -= stored.num_bytes
        if not mine:
            del self._of[tenant], self._bytes_of[tenant]
        return True
