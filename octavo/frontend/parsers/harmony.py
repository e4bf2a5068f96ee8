"""Harmony, the format of gpt-oss: an answer is messages, each with a header that names its channel and recipient.

`<|channel|>analysis<|message|>` is reasoning, `final` and a bare `commentary` are content, and
`<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>` is a call whose body is its arguments.
(OpenAI, "Harmony response format", 2025.)
"""

from __future__ import annotations

import re

from octavo.frontend.parsers.calls import Offered, read_arguments
from octavo.frontend.parsers.cursor import Cursor, Malformed, Markers, Steps

_BEGIN = Markers(["<|start|>", "<|channel|>"])
_HEADER_END = Markers(["<|message|>"])
_BODY_END = Markers(["<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>"])
_TAGS = re.compile(r"<\|(?:channel|constrain|start)\|>")
_MAX_HEADER = 512
_CHANNELS = ("analysis", "commentary", "final")


def read_harmony(cursor: Cursor, offered: Offered | None) -> Steps[None]:
    """A whole answer. Text outside of messages is content.

    Args:
        offered: None leaves calls in the text.
    """
    begin = yield from cursor.until(_BEGIN, cursor.content)
    while begin:
        cursor.hold(back=len(begin))
        try:
            begin = yield from _read_message(cursor, begin, offered)
        except Malformed:
            cursor.release()
            begin = ""
        if not begin:
            begin = yield from cursor.until(_BEGIN, cursor.content)


def _read_message(cursor: Cursor, begin: str, offered: Offered | None) -> Steps[str]:
    """Header and body; return what begins the next message if that ended this one."""
    header, _ = yield from cursor.collect(_HEADER_END, _MAX_HEADER)
    channel, recipient = _parse_header(begin + header)
    if recipient and offered is not None:
        yield from cursor.blanks()
        yield from read_arguments(cursor, offered.check(recipient))
        cursor.hold()
        yield from cursor.blanks()
        end = yield from cursor.literal("<|end|>", "<|return|>", "<|call|>")
        if not end:
            raise Malformed
        cursor.drop()
        return ""
    if recipient:
        raise Malformed
    cursor.drop()
    end = yield from cursor.until(_BODY_END, cursor.reasoning if channel == "analysis" else cursor.content)
    return end if end in ("<|start|>", "<|channel|>") else ""


def _parse_header(header: str) -> tuple[str, str]:
    """Channel and function; Malformed for another channel or another kind of recipient."""
    channel = recipient = ""
    after_channel = header.split("<|channel|>", 1)[1] if "<|channel|>" in header else ""
    words = _TAGS.sub(" ", after_channel).split()
    if words and not words[0].startswith("to="):
        channel = words[0]
    for word in _TAGS.sub(" ", header).split():
        if word.startswith("to="):
            recipient = word[3:].split("<|", 1)[0]
    if recipient and not recipient.startswith("functions."):
        raise Malformed
    if channel not in _CHANNELS:
        raise Malformed
    return channel, recipient.removeprefix("functions.")
