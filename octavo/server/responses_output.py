"""The output of a response as it grows: items, and the events that tell of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from octavo.frontend.parsers import Piece
from octavo.server.responses_items import Item, new_item_id

_FILL_BYTES = 64  # deltas that are filled up differ in length by multiples of this


class Events:
    """Server-sent events, numbered from 0."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event with its number."""
        data = orjson.dumps({"type": kind, **fields, "sequence_number": self.number})
        self.number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class _Open:
    """The item that is being written.

    Attributes:
        place: what its events say of where it is.
        delta: the event that brings more of it; `head` is how that event of plain text begins.
    """

    __slots__ = ("delta", "head", "item", "logprobs", "place", "texts")

    def __init__(self, item: Item, index: int, delta: str):
        self.item = item
        self.delta = delta
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.place: dict[str, Any] = {"item_id": item["id"], "output_index": index}
        if item["type"] != "function_call":
            self.place["content_index"] = 0
        fields = {"type": delta, **self.place} | ({"logprobs": []} if item["type"] == "message" else {})
        self.head = b"event: %b\ndata: %b" % (delta.encode(), orjson.dumps(fields)[:-1])


class OutputItems:
    """Reasoning, text and calls as items.

    Args:
        new_call_id: makes ids that outputs of calls are to name.
        obfuscates: fill deltas up, so that their lengths tell less.

    Attributes:
        items: those that are done.
    """

    def __init__(self, events: Events, new_call_id: Callable[[], str], *, obfuscates: bool = False):
        self.items: list[Item] = []
        self._events = events
        self._new_call_id = new_call_id
        self._obfuscates = obfuscates
        self._open: _Open | None = None

    def text(self, text: str) -> bytes:
        """Events for more text without logprobs."""
        if self._open is None or self._open.item["type"] != "message" or self._obfuscates:
            return self.take([Piece("content", text)])
        self._open.texts.append(text)
        number = self._events.number
        self._events.number = number + 1
        return b'%b,"delta":%b,"sequence_number":%d}\n\n' % (self._open.head, orjson.dumps(text), number)

    def take(self, pieces: Sequence[Piece], logprobs: Sequence[dict[str, Any]] = ()) -> bytes:
        """Events for what was read of the answer.

        Args:
            logprobs: of the tokens that the first piece is made of, if that is text.
        """
        told: list[bytes] = []
        for rank, piece in enumerate(pieces):
            kind = _TYPES[piece.kind]
            if piece.kind == "call":
                told.append(self.close())
                told.append(self._begin({"type": kind, "call_id": self._new_call_id(), "name": piece.text}))
                continue
            if self._open is None or self._open.item["type"] != kind:
                told.append(self.close())
                told.append(self._begin({"type": kind}))
            told.append(self._delta(piece.text, list(logprobs) if rank == 0 else []))
        return b"".join(told)

    def _begin(self, item: Item) -> bytes:
        kind = item["type"]
        item = {"id": new_item_id(_PREFIXES[kind]), **item, "status": "in_progress"}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            item["arguments"] = ""
        self._open = _Open(item, len(self.items), _DELTAS[kind])
        event = self._events.event
        told = event("response.output_item.added", output_index=len(self.items), item=item)
        if kind == "function_call":
            return told
        return told + event("response.content_part.added", **self._open.place, part=_part(kind, "", []))

    def _delta(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        opened = self._open
        if opened is None:
            raise RuntimeError("a delta without an item")
        opened.texts.append(text)
        fields: dict[str, Any] = {**opened.place, "delta": text}
        if opened.item["type"] == "message":
            fields["logprobs"] = logprobs
            opened.logprobs += logprobs
        if self._obfuscates:
            fields["obfuscation"] = secrets.token_hex(_FILL_BYTES)[: -len(text.encode()) % _FILL_BYTES]
        return self._events.event(opened.delta, **fields)

    def close(self, status: str = "completed") -> bytes:
        """Events for the end of the item that is being written, if one is."""
        opened, self._open = self._open, None
        if opened is None:
            return b""
        item, kind, event = opened.item, opened.item["type"], self._events.event
        text = "".join(opened.texts)
        item["status"] = status
        done = opened.delta.removesuffix("delta") + "done"
        if kind == "function_call":
            item["arguments"] = text
            told = event(done, **opened.place, name=item["name"], arguments=text)
        else:
            part = _part(kind, text, opened.logprobs)
            item["content"] = [part]
            more = {"logprobs": opened.logprobs} if kind == "message" else {}
            told = event(done, **opened.place, text=text, **more)
            told += event("response.content_part.done", **opened.place, part=part)
        self.items.append(item)
        return told + event("response.output_item.done", output_index=len(self.items) - 1, item=item)

    def finish(self, status: str) -> bytes:
        """Events for the end of the answer, which has at least one item: an answer without a word is an empty one."""
        told = b"" if self.items or self._open is not None else self._begin({"type": "message"})
        return told + self.close(status)


_TYPES = {"content": "message", "reasoning": "reasoning", "call": "function_call", "arguments": "function_call"}
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_DELTAS = {
    "message": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "function_call": "response.function_call_arguments.delta",
}


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> Item:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
