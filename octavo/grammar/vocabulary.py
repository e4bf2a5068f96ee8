"""What grammars must know of a tokenizer: the bytes of every id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError

INSTALL = 'Install octavo with its extra: pip install "octavo[grammar]".'


class Vocabulary(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of every id below vocab_size (empty where there is no token), control tokens, ids that end an answer."""

    tokens: list[bytes]
    special_ids: list[int]
    eos_ids: list[int]


class _Encoder:
    """The tokenizer as llguidance calls it. Without `encode`, the longest token that fits is taken each time."""

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], list[int]] | None):
        self.eos_token_id = vocabulary.eos_ids[0] if vocabulary.eos_ids else 0
        self.bos_token_id = None
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_ids
        self._encode = encode
        special = set(vocabulary.special_ids)
        self._ids = {token: i for i, token in enumerate(vocabulary.tokens) if token and i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        if self._encode is not None:
            return self._encode(text.decode() if isinstance(text, bytes) else text)
        data, at, ids = text if isinstance(text, bytes) else text.encode(), 0, []
        while at < len(data):
            size = next((n for n in range(self._longest, 0, -1) if data[at : at + n] in self._ids), 0)
            if size:
                ids.append(self._ids[data[at : at + size]])
            at += size or 1
        return ids


def ll_tokenizer(vocabulary: Vocabulary, encode: Callable[[str], list[int]] | None = None) -> Any:
    """An `llguidance.LLTokenizer`.

    Args:
        encode: text to ids without control tokens; forced text is spelled as it would.

    Raises:
        InvalidRequestError: llguidance is not installed.
    """
    check_installed()
    import llguidance

    wrapper = llguidance.TokenizerWrapper(_Encoder(vocabulary, encode))
    ends = vocabulary.eos_ids or None
    return llguidance.LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens), eos_token=ends)


def parser_limits() -> Any:
    """Bounds of one grammar, the same where it is checked and where it runs: a step's mask takes some 15 ms at most."""
    import llguidance

    return llguidance.LLParserLimits(verbose_errors=False)


def check_installed() -> None:
    """Raises InvalidRequestError: the extra that grammars need is not there."""
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise InvalidRequestError(
            "structured_outputs cannot be kept: llguidance is not installed on this server.",
            fix=INSTALL,
            param="structured_outputs",
            code="unsupported_value",
        ) from None
