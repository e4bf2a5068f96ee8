"""A `tokenizers.Tokenizer` from the metadata of a GGUF file.

Keys and their meaning: the GGUF specification (`tokenizer.ggml.*`). Two vocabulary kinds are built:
"gpt2" is byte-level BPE with explicit merges; "llama" is SentencePiece BPE, whose merges follow from the pieces'
scores: joining two pieces is allowed when the joined string is a piece, and the best score is joined first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from octavo.errors import ModelFileError
from octavo.frontend.pre_tokenizers import pre_tokenizer

_SPACE = "▁"  # U+2581, how SentencePiece writes a space


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class GGUFVocab:
    """What the metadata says about the tokenizer, checked.

    Attributes:
        tokens: spelling of each id. An id whose spelling is empty or a repetition gets a spelling of its own.
        types: one of `TokenType` for each id.
        bos_token_id, eos_token_ids: as the file gives them.
        add_bos, add_eos: what encoding adds when asked for special tokens.
    """

    tokens: list[str]
    types: Sequence[int]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> GGUFVocab:
        """Raises ModelFileError: a key is missing or its value impossible."""
        tokens = _unique([str(token) for token in _required(metadata, "tokens")])
        types = metadata.get("tokenizer.ggml.token_type")
        types = [TokenType.NORMAL] * len(tokens) if types is None else [int(kind) for kind in types]
        if len(types) != len(tokens):
            raise ModelFileError(
                f"The GGUF file has {len(tokens)} tokens but {len(types)} token types.",
                fix="The file is damaged or badly converted: fetch it again.",
            )
        ends = (_token_id(metadata, f"{kind}_token_id", len(tokens)) for kind in ("eos", "eot", "eom"))
        bos = _token_id(metadata, "bos_token_id", len(tokens))
        add_bos_default = (
            str(metadata.get("tokenizer.ggml.model")) == "llama"
            or pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default"))).add_bos
        )
        return cls(
            tokens=tokens,
            types=types,
            bos_token_id=bos,
            eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
            add_bos=bos is not None and bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos_default)),
            add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        )

    def special_tokens(self) -> dict[str, str]:
        """The names chat templates use for them."""
        named = {"bos_token": self.bos_token_id, "eos_token": next(iter(self.eos_token_ids), None)}
        return {name: self.tokens[token_id] for name, token_id in named.items() if token_id is not None}


def build_tokenizer(metadata: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, GGUFVocab]:
    """The tokenizer that a GGUF file describes.

    Args:
        metadata: keys as in the file, values as Python scalars, strings and sequences.

    Raises:
        ModelFileError: the vocabulary is missing, inconsistent, or of a kind that is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelFileError(
            f"The GGUF file's tokenizer is of kind {kind!r}; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE).",
            fix="Give --tokenizer a folder with the model's tokenizer.json.",
            param="tokenizer",
        )
    vocab = GGUFVocab.read(metadata)
    built = _byte_level(metadata, vocab) if kind == "gpt2" else _sentencepiece(metadata, vocab)
    _add_tokens(built, vocab)
    _add_post_processor(built, vocab)
    return built, vocab


def _byte_level(metadata: Mapping[str, Any], vocab: GGUFVocab) -> tokenizers.Tokenizer:
    split = pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")))
    ids = {token: token_id for token_id, token in enumerate(vocab.tokens)}
    merges = []
    for merge in _required(metadata, "merges"):
        text = str(merge)
        border = text.find(" ", 1)  # not 0: a left piece may begin with a space
        left, right = text[: max(border, 0)], text[border + 1 :]
        if left not in ids or right not in ids or left + right not in ids:
            raise ModelFileError(
                f"The GGUF file's merge {merge!r} joins or makes pieces that are not in its vocabulary.",
                fix="The file is damaged or badly converted: fetch it again.",
            )
        merges.append((left, right))
    built = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=split.ignore_merges))
    if split.nfc:
        built.normalizer = split.normalizer()
    built.pre_tokenizer = split.build()
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(metadata: Mapping[str, Any], vocab: GGUFVocab) -> tokenizers.Tokenizer:
    scores = [float(score) for score in _required(metadata, "scores")]
    if len(scores) != len(vocab.tokens):
        raise ModelFileError(
            f"The GGUF file has {len(vocab.tokens)} tokens but {len(scores)} scores.",
            fix="The file is damaged or badly converted: fetch it again.",
        )
    unknown = next((t for t, kind in zip(vocab.tokens, vocab.types, strict=True) if kind == TokenType.UNKNOWN), None)
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: token_id for token_id, token in enumerate(vocab.tokens)},
            merges=merges_from_scores(vocab.tokens, scores, vocab.types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    built.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    chain = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*chain, decoders.Strip(" ", 1, 0)] if prefix else chain)
    return built


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Merges in order of rank, from SentencePiece's scores.

    Control, unknown and byte tokens take no part: text must never turn into them. Pairs that make the same piece
    rank by the lengths of their parts, longest first, as transformers orders them.
    """
    scored = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    ranked = []
    for token, score in scored.items():
        for border in range(1, len(token)):
            left, right = token[:border], token[border:]
            if left in scored and right in scored:
                ranked.append((-score, -border, border - len(token), left, right))
    ranked.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in ranked]


def _add_tokens(built: tokenizers.Tokenizer, vocab: GGUFVocab) -> None:
    """Make control and unknown tokens special, and match user-defined ones whole in text."""
    special, plain = [], []
    for token, kind in zip(vocab.tokens, vocab.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    built.add_special_tokens(special)
    built.add_tokens(plain)


def _add_post_processor(built: tokenizers.Tokenizer, vocab: GGUFVocab) -> None:
    ends = vocab.eos_token_ids[:1] if vocab.add_eos else ()
    starts = (vocab.bos_token_id,) if vocab.add_bos and vocab.bos_token_id is not None else ()
    if not starts and not ends:
        return
    around = {vocab.tokens[token_id]: token_id for token_id in (*starts, *ends)}
    # ":" and "$" separate fields in a template's text form, so the ids travel under plain names.
    names = {token_id: f"T{token_id}" for token_id in around.values()}
    pieces = [*(names[i] for i in starts), "$A", *(names[i] for i in ends)]
    built.post_processor = processors.TemplateProcessing(
        single=pieces,
        special_tokens=[
            {"id": names[token_id], "ids": [token_id], "tokens": [token]} for token, token_id in around.items()
        ],
    )


def _required(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    value: Sequence[Any] | None = metadata.get(f"tokenizer.ggml.{key}")
    if value is None or isinstance(value, str) or len(value) == 0:
        raise ModelFileError(
            f"The GGUF file has no tokenizer.ggml.{key}, which its kind of tokenizer needs.",
            fix="Give --tokenizer a folder with the model's tokenizer.json, or a complete file.",
            param="tokenizer",
        )
    return value


def _token_id(metadata: Mapping[str, Any], key: str, num_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    return int(value) if value is not None and 0 <= int(value) < num_tokens else None


def _unique(tokens: list[str]) -> list[str]:
    """Ids must keep their place, so an empty or repeated spelling gets one of its own."""
    if len(set(tokens)) == len(tokens) and "" not in tokens:
        return tokens
    seen: set[str] = set()
    for token_id, token in enumerate(tokens):
        if not token or token in seen:
            tokens[token_id] = f"[unused id {token_id}]"
        seen.add(tokens[token_id])
    return tokens
