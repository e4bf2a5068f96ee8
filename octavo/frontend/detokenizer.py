"""Token ids to text, as they come.

What has been given out is never taken back, and all of it together is what `Tokenizer.decode` gives for all ids at
once. Text is whole characters: bytes that may still become one are kept until they do or cannot.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable

from tokenizers.decoders import DecodeStream

from octavo.frontend.tokenizer import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One sequence's way from ids to text.

    The common token is whole characters and costs one look-up. Others go through an incremental UTF-8 decoder,
    which replaces invalid bytes by U+FFFD as decoding the whole would.

    Args:
        skip_special_tokens: control tokens give no text.
        continuation: the text goes on from earlier text, so a SentencePiece vocabulary's leading space stays.
        kept: spellings of control tokens that give text nevertheless.
    """

    __slots__ = ("_decoder", "_pending", "_strip", "_texts", "_tokenizer")

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        continuation: bool = False,
        kept: Collection[str] = (),
    ):
        self._tokenizer = tokenizer
        self._texts = tokenizer.texts
        if skip_special_tokens:
            self._texts = tokenizer.texts_keeping(kept) if kept else tokenizer.visible_texts
        self._decoder = _UTF8("replace")
        self._pending = False  # the decoder holds the first bytes of a character
        self._strip = tokenizer.codec is not None and tokenizer.codec.strip_leading_space and not continuation

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" if it completes none."""
        text = self._texts[token_id]
        if text is None or self._pending or self._strip:
            return self._push_slow(token_id, text)
        return text

    def push_all(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return "".join([self.push(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """The rest, when no more tokens come: U+FFFD if a character stayed incomplete."""
        if not self._pending:
            return ""
        self._pending = False
        return self._decoder.decode(b"", True)

    def _push_slow(self, token_id: int, text: str | None) -> str:
        if text == "":  # a skipped control token: the bytes around it meet
            return ""
        if text is None or self._pending:
            text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
            self._pending = self._decoder.getstate()[0] != b""
        if self._strip and text:
            self._strip = False
            return text[1:] if text[0] == " " else text
        return text


class _StreamDetokenizer(Detokenizer):
    """For decoders that are no matter of bytes (WordPiece, Metaspace): the tokenizers library's own stream."""

    __slots__ = ("_given", "_ids", "_stream")

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        continuation: bool = False,
        kept: Collection[str] = (),
    ):
        super().__init__(tokenizer, skip_special_tokens, continuation, kept)
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._given = 0

    def push(self, token_id: int) -> str:
        if self._texts[token_id] == "":
            return ""
        self._ids.append(token_id)
        new = self._stream.step(self._tokenizer.backend, token_id) or ""
        self._given += len(new)
        return new

    def flush(self) -> str:
        rest = self._tokenizer.decode(self._ids, skip_special_tokens=False)[self._given :]
        self._given += len(rest)
        return rest


def detokenizer(
    tokenizer: Tokenizer,
    skip_special_tokens: bool = True,
    continuation: bool = False,
    kept: Collection[str] = (),
) -> Detokenizer:
    """The detokenizer that suits the tokenizer's decoder; arguments as of `Detokenizer`."""
    kind = Detokenizer if tokenizer.codec else _StreamDetokenizer
    return kind(tokenizer, skip_special_tokens, continuation, kept)
