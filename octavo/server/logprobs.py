"""Logprobs in the three shapes that clients know: chat's, the older one of completions, and vLLM's for prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from octavo.frontend.tokenizer import Tokenizer
from octavo.request import TokenLogprobs

_LEAST = -9999.0  # JSON has no infinity; clients know this number for it


def chat_logprobs(
    entries: Sequence[TokenLogprobs], tokenizer: Tokenizer | None, *, as_ids: bool = False
) -> dict[str, Any]:
    """`logprobs` of a chat choice; `bytes` tell what a token of half a character is, `as_ids` which token it is."""
    return {
        "content": [
            _chat_token(entry.token_id, entry.logprob, tokenizer, as_ids)
            | {"top_logprobs": [_chat_token(*top, tokenizer, as_ids) for top in _top(entry)]}
            for entry in entries
        ],
        "refusal": None,
    }


def completion_logprobs(
    entries: Sequence[TokenLogprobs | None],
    tokenizer: Tokenizer | None,
    offset: int,
    first_id: int | None = None,
    *,
    as_ids: bool = False,
) -> tuple[dict[str, list[Any]], int]:
    """`logprobs` of a completion choice, and the offset of what follows.

    Args:
        entries: None for a prompt's first token, which nothing predicts.
        offset: of the first entry's text, in characters.
        first_id: the token that a None stands for.
        as_ids: name tokens by their ids.
    """
    names = None if as_ids else tokenizer
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for entry in entries:
        token_id = first_id if entry is None else entry.token_id
        tokens.append("" if token_id is None else _spelled(token_id, names))
        offsets.append(offset)
        offset += len("" if token_id is None else _text(token_id, tokenizer))
        values.append(None if entry is None else _finite(entry.logprob))
        top = None if entry is None else {_spelled(i, names): _finite(p) for i, p in _top(entry)}
        if top is not None and entry is not None:
            top.setdefault(tokens[-1], _finite(entry.logprob))
        tops.append(top)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}, offset


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None], tokenizer: Tokenizer | None
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: by token id, the token's own entry among the likeliest."""
    return [None if entry is None else _by_id(entry, tokenizer) for entry in entries]


def _by_id(entry: TokenLogprobs, tokenizer: Tokenizer | None) -> dict[str, dict[str, Any]]:
    rows = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(_top(entry), 1)]
    return {
        str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": _text(token_id, tokenizer)}
        for token_id, logprob, rank in [*rows, (entry.token_id, entry.logprob, entry.rank)]
    }


def _top(entry: TokenLogprobs) -> zip[tuple[int, float]]:
    return zip(entry.top_ids, entry.top_logprobs, strict=True)


def _chat_token(token_id: int, logprob: float, tokenizer: Tokenizer | None, as_ids: bool) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id) if tokenizer is not None else b""
    text = raw.decode("utf-8", "replace") if tokenizer is not None and not as_ids else f"token_id:{token_id}"
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw) if tokenizer is not None else None}


def _text(token_id: int, tokenizer: Tokenizer | None) -> str:
    return "" if tokenizer is None else tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _spelled(token_id: int, tokenizer: Tokenizer | None) -> str:
    r"""A token's text, or `bytes:\xe2\x82` where it is half a character: keys must stay apart."""
    if tokenizer is None:
        return f"token_id:{token_id}"
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST
