"""Conversations to token ids, such that what a user writes is never read as a control token.

A template writes control tokens as text ("<|im_end|>"), and so can a user. The two are told apart by rendering the
conversation with stand-ins: characters that no request contains take the place of some characters in the request's
strings, and are turned back while encoding, where the text around them is not parsed (`Tokenizer.encode_guarded`).

Stand-ins must not disturb templates, which look into content ("</think>" in it?). So there are two ways to place them:

- sparing: only where a string spells a control token, or ends with the beginning of one. That is enough unless the
  template itself builds a spelling out of what it was given, by cutting something out of it, say.
- thorough: wherever a character begins any control token. Nothing a request holds can begin one then.

The sparing text is used if both spell the same control tokens in the same order: then none of them came from the
request. If they differ, the thorough one is. A request without such a character (the usual one) is rendered once,
as it is, and all text without a spelling has the ids that transformers gives.

A spelling that the template begins and the request ends, as "<|" + role + "|>", is the template's own doing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from octavo.frontend.chat_template import ChatTemplate, Mark, user_strings
from octavo.frontend.tokenizer import Tokenizer

# Noncharacters, which no well-formed text interchanges; then private use, should a request hold them nevertheless.
_CANDIDATES = [chr(code) for code in (*range(0xFDD0, 0xFDDF), *range(0xE000, 0xF900))]


class ChatEncoder:
    """Renders with one template and encodes with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate):
        self.template = template
        self._tokenizer = tokenizer
        self._spellings = tuple(sorted(filter(None, tokenizer.special_spellings), key=len, reverse=True))

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
        **options: bool,
    ) -> tuple[str, list[int]]:
        """The conversation's text and token ids; arguments and errors as of `ChatTemplate.render`."""

        def render(mark: Mark | None) -> str:
            return self.template.render(messages, tools, kwargs=kwargs, mark=mark, **options)

        strings = list(user_strings([messages, tools, kwargs]))
        if not self._spellings or not any(map(self._first.search, strings)):
            text = render(None)
            return text, self._tokenizer.encode(text, add_special_tokens=False)
        hidden = self._stand_ins(strings)
        text, thorough = render(self._sparing(hidden)), render(self._thorough(hidden))
        if self._spelled.findall(text) != self._spelled.findall(thorough):
            text = thorough
        stand_ins: dict[str, str] = {stand_in: char for char, stand_in in hidden.items()}
        for stand_in in stand_ins:  # a template may have escaped them in JSON
            text = text.replace(_escaped(stand_in), stand_in)
        shown = text.translate({ord(stand_in): char for stand_in, char in stand_ins.items()})
        return shown, self._tokenizer.encode_guarded(text, stand_ins)

    @cached_property
    def _first(self) -> re.Pattern[str]:
        """A character that begins a control token's spelling."""
        return re.compile("[" + "".join(re.escape(char) for char in self._first_chars) + "]")

    @cached_property
    def _first_chars(self) -> list[str]:
        return sorted({spelling[0] for spelling in self._spellings})

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        """A control token's spelling, the longest that fits."""
        return re.compile(any_of(self._spellings))

    @cached_property
    def _spelled_here(self) -> re.Pattern[str]:
        """The first character of a control token's spelling, wherever one begins, inside another one too."""
        return re.compile(f"(?=(?:{self._spelled.pattern}))(.)", re.DOTALL)

    def _stand_ins(self, strings: Iterable[str]) -> dict[str, str]:
        """Character to stand-in; neither a stand-in nor its JSON escape is in any of the strings."""
        all_text = "\n".join(strings)
        free = (c for c in _CANDIDATES if c not in all_text and _escaped(c) not in all_text)
        return dict(zip(self._first_chars, free, strict=False))

    def _thorough(self, hidden: Mapping[str, str]) -> Mark:
        table = {ord(char): stand_in for char, stand_in in hidden.items()}
        return lambda text: text.translate(table)

    def _sparing(self, hidden: Mapping[str, str]) -> Mark:
        def mark(text: str) -> str:
            text = self._spelled_here.sub(lambda match: hidden[match[1]], text)
            end = len(text.rstrip())  # templates trim
            for start in range(max(0, end - len(self._spellings[0])), end):
                if text[start] in hidden and self._begins_spelling(text[start:end]):
                    text = text[:start] + hidden[text[start]] + text[start + 1 :]
            return text

        return mark

    def _begins_spelling(self, tail: str) -> bool:
        return any(spelling.startswith(tail) for spelling in self._spellings)


def any_of(words: Collection[str]) -> str:
    """A pattern for the longest of some words, which shares their beginnings: its cost does not grow with their number.

    Thousands of control tokens that begin alike are common ("<|reserved_special_token_0|>" and on).
    """
    heads: dict[str, list[str]] = {}
    for word in words:
        if word:
            heads.setdefault(word[0], []).append(word)
    branches = []
    for same in heads.values():
        length = _shared_length(min(same), max(same))  # the two that differ first
        shared, rest = same[0][:length], [word[length:] for word in same]
        branches.append(re.escape(shared) + (any_of(rest) if len(rest) > 1 else ""))
    return f"(?:{'|'.join(branches)})" + ("?" if "" in words else "")


def _shared_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}"
