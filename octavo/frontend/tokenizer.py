"""`Tokenizer`: text to token ids and back, from a `tokenizer.json` or a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from octavo.errors import InvalidRequestError, ModelFileError
from octavo.frontend.gguf_vocab import build_tokenizer
from octavo.frontend.token_bytes import PieceCodec, piece_codec


class GGUFLike(Protocol):
    """What a tokenizer reads of an `octavo.weights.gguf.GGUFFile`."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...


class CheckpointLike(Protocol):
    """What `load_tokenizer` reads of an `octavo.weights.checkpoint.Checkpoint`."""

    @property
    def gguf(self) -> Any: ...
    @property
    def folder(self) -> Path | None: ...


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a model says of its tokenizer beside the vocabulary.

    Attributes:
        bos_token_id: the id that begins a text, if there is one.
        eos_token_ids: ids that end an answer.
        special_tokens: `bos_token` and the like, by the names chat templates use.
        chat_templates: Jinja sources by name; "default" is the usual one.
    """

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)


class _Bytes(dict[int, bytes]):
    """Token id to its bytes, filled on first use."""

    def __init__(self, backend: tokenizers.Tokenizer, to_bytes: Callable[[str], bytes]):
        super().__init__()
        self._backend = backend
        self._to_bytes = to_bytes

    def __missing__(self, token_id: int) -> bytes:
        piece = self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        value = self[token_id] = b"" if piece is None else self._to_bytes(piece)
        return value


_MAX_KEPT = 64  # sets of kept control tokens whose texts are remembered


class _Texts(dict[int, str | None]):
    """Token id to its text, filled on first use; None where the bytes are not whole UTF-8 characters."""

    def __init__(self, token_bytes: Mapping[int, bytes], hidden: frozenset[int] = frozenset()):
        super().__init__()
        self._bytes = token_bytes
        self._hidden = hidden

    def __missing__(self, token_id: int) -> str | None:
        try:
            text: str | None = "" if token_id in self._hidden else self._bytes[token_id].decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


class Tokenizer:
    """A model's tokenizer. Thread-safe: encoding and decoding share nothing that changes but caches.

    Args:
        backend: the vocabulary, its splits, and what it adds around a text.
        facts: special ids and templates.

    Attributes:
        texts: id to text, None where it is not whole characters; `visible_texts`: the same, "" for control tokens.
        special_spellings: of all control tokens.
        codec: how pieces become bytes; None for decoders that are no matter of bytes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, facts: TokenizerFacts | None = None):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.facts = facts or TokenizerFacts()
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_spellings: tuple[str, ...] = tuple(sorted(added[i].content for i in self._special_ids))
        self._plain = _without_special_parsing(backend, added)
        self.codec: PieceCodec | None = piece_codec(_parts(backend).get("decoder"))
        self._bytes = _Bytes(backend, self.codec.to_bytes if self.codec else str.encode)
        self.texts: dict[int, str | None] = _Texts(self._bytes)
        self.visible_texts: dict[int, str | None] = _Texts(self._bytes, self._special_ids)
        self._texts_keeping: dict[frozenset[int], dict[int, str | None]] = {frozenset(): self.visible_texts}
        unknown = getattr(backend.model, "unk_token", None)
        self._unknown_id = backend.token_to_id(unknown) if isinstance(unknown, str) else None

    @classmethod
    def from_gguf(cls, gguf: GGUFLike) -> Tokenizer:
        """From a GGUF file's metadata.

        Raises:
            ModelFileError: its vocabulary is missing, inconsistent, or of a kind that is not supported.
        """
        metadata = gguf.metadata
        backend, vocab = build_tokenizer(metadata)
        templates = {
            key.removeprefix("tokenizer.chat_template.").replace("tokenizer.chat_template", "default"): metadata[key]
            for key in metadata
            if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
        }
        facts = TokenizerFacts(vocab.bos_token_id, vocab.eos_token_ids, vocab.special_tokens(), templates)
        return cls(backend, facts)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """From a folder in Hugging Face's layout: `tokenizer.json` and the small JSON files beside it.

        Raises:
            ModelFileError: there is no `tokenizer.json`, or a file cannot be read.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise _no_tokenizer(folder)
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for all that can be wrong with the file
            raise ModelFileError(
                f"{file} cannot be read: {error}.", fix="Fetch the model again.", param="tokenizer"
            ) from error
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
        bos = backend.token_to_id(special["bos_token"]) if "bos_token" in special else None
        eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        configs = [_read_json(folder / name) for name in ("generation_config.json", "config.json")]
        named = next(filter(None, (_ids(config.get("eos_token_id")) for config in configs)), ())
        ends = (*named, *(() if eos is None else (eos,)))
        return cls(backend, TokenizerFacts(bos, tuple(dict.fromkeys(ends)), special, _chat_templates(folder, config)))

    @property
    def vocab_size(self) -> int:
        """Ids are below this; the model's logits may be wider."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        return self.facts.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.facts.eos_token_ids

    @property
    def chat_template(self) -> str | None:
        """Source of the model's own chat template, if it has one."""
        return self.facts.chat_templates.get("default")

    def texts_keeping(self, spellings: Collection[str]) -> dict[int, str | None]:
        """`visible_texts`, but control tokens of these spellings have their text."""
        kept = frozenset(i for i in self._special_ids if self.backend.id_to_token(i) in spellings)
        if kept not in self._texts_keeping:
            if len(self._texts_keeping) >= _MAX_KEPT:
                self._texts_keeping.clear()
            self._texts_keeping[kept] = _Texts(self._bytes, self._special_ids - kept)
        return self._texts_keeping[kept]

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, which text decoded with `skip_special_tokens` leaves out."""
        return token_id in self._special_ids

    def token_text(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it ("Ġthe"), or None for an id that it has not."""
        return self.backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token adds to a text; empty for an id that the vocabulary has not."""
        return self._bytes[token_id]

    @cached_property
    def max_token_chars(self) -> int:
        """The longest token's length in characters of its spelling (a byte each, in byte-level vocabularies)."""
        return max(map(len, self.backend.get_vocab(with_added_tokens=True)), default=1)

    def encode(self, text: str, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: add what the model expects around a text (a BOS, usually, or nothing).
            parse_special: spellings of control tokens in the text become those tokens. Without it they are text like
                any other, which is what untrusted text needs.

        Raises:
            InvalidRequestError: the text has lone surrogates, or spells a control token that this vocabulary cannot
                write as text.
        """
        if parse_special:
            return _encode(self.backend, text, add_special_tokens).ids
        encoding = self._encode_plain(self._plain, text)
        return self._plain.post_process(encoding).ids if add_special_tokens else encoding.ids

    def encode_guarded(self, text: str, stand_ins: Mapping[str, str]) -> list[int]:
        """Token ids of a text some of whose characters hide behind stand-ins, so that they spell no control token.

        Control tokens that the text spells openly are parsed. Stretches between them that hold stand-ins are encoded
        as the text they stand for, without parsing; all others keep the ids that encoding the whole gives them.

        Args:
            stand_ins: stand-in to the character it hides.
        """
        whole = _encode(self.backend, text, False)
        table = {ord(stand_in): char for stand_in, char in stand_ins.items()}
        if text.translate(table) == text:
            return whole.ids
        ids: list[int] = []
        start = first = 0  # of the stretch, in characters and in tokens
        for index, token_id in enumerate([*whole.ids, -1]):
            if token_id != -1 and token_id not in self._special_ids:
                continue
            stretch = text[start : whole.offsets[index][0] if token_id != -1 else len(text)]
            shown = stretch.translate(table)
            if shown != stretch:
                ids += self._encode_plain(self._plain if start == 0 else self._continuation, shown).ids
            else:
                ids += whole.ids[first:index]
            if token_id != -1:
                ids.append(token_id)
                start, first = whole.offsets[index][1], index + 1
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.

        SentencePiece vocabularies differ from the tokenizers library in one thing: a run of byte tokens with an
        invalid byte keeps its valid characters, so that text already streamed need never be taken back.
        """
        special = self._special_ids if skip_special_tokens else frozenset()
        if self.codec is None:
            known = [token_id for token_id in ids if token_id not in special]
            return self.backend.decode(known, skip_special_tokens=False)
        table = self._bytes
        joined = b"".join([table[token_id] for token_id in ids if token_id not in special])
        text = joined.decode(errors="replace")
        return text[1:] if self.codec.strip_leading_space and text.startswith(" ") else text

    def _encode_plain(self, backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
        """Encode without parsing; refuse control tokens that come out nevertheless, as Unigram vocabularies can."""
        encoding = _encode(backend, text, False)
        bad = next((i for i in encoding.ids if i in self._special_ids and i != self._unknown_id), None)
        if bad is not None:
            raise InvalidRequestError(
                f"The text spells the control token {self.token_text(bad)!r}, which this model cannot read as text.",
                fix="Take the spelling out of the text.",
            )
        return encoding

    @cached_property
    def _continuation(self) -> tokenizers.Tokenizer:
        """`_plain` for text that follows a control token: without the space that only the very first text gets."""
        split = json.dumps(_parts(self.backend).get("pre_tokenizer"))
        if "Metaspace" not in split or '"first"' not in split:
            return self._plain
        description = json.loads(self._plain.to_str())
        description["pre_tokenizer"] = json.loads(split.replace('"first"', '"never"'))
        changed = tokenizers.Tokenizer.from_str(json.dumps(description))
        changed.encode_special_tokens = True
        return changed


def load_tokenizer(source: CheckpointLike | str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint, or of a folder.

    Raises:
        ModelFileError: there is none, or it is of a kind that is not supported.
    """
    if isinstance(source, str | Path):
        return Tokenizer.from_folder(source)
    if source.gguf is not None:
        return Tokenizer.from_gguf(source.gguf)
    if source.folder is None:
        raise ModelFileError(
            "The model comes without a folder, so without a tokenizer.",
            fix="Give --tokenizer, or serve token ids only with --skip-tokenizer-init.",
            param="tokenizer",
        )
    return Tokenizer.from_folder(source.folder)


def _encode(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
    try:
        return backend.encode(text, add_special_tokens=add_special_tokens)
    except (UnicodeEncodeError, TypeError) as error:
        raise InvalidRequestError(
            "The text holds characters that are no valid Unicode (lone surrogates).",
            fix="Send well-formed UTF-8.",
            param="prompt",
        ) from error


def _without_special_parsing(
    backend: tokenizers.Tokenizer, added: Mapping[int, tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    """A second tokenizer over the same model (its memory is shared) that reads control spellings as text."""
    plain = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        plain.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        plain.pre_tokenizer = backend.pre_tokenizer
    if backend.post_processor is not None:
        plain.post_processor = backend.post_processor
    for token_id in sorted(added):  # in order of ids, so that those outside the model's vocabulary keep theirs
        (plain.add_special_tokens if added[token_id].special else plain.add_tokens)([added[token_id]])
    plain.encode_special_tokens = True
    return plain


def _parts(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The description of the backend's splits and decoder, without the vocabulary, which would take long to write."""
    shell = tokenizers.Tokenizer(tokenizers.models.BPE())
    if backend.pre_tokenizer is not None:
        shell.pre_tokenizer = backend.pre_tokenizer
    if backend.decoder is not None:
        shell.decoder = backend.decoder
    parts: dict[str, Any] = json.loads(shell.to_str())
    return parts


def _ids(value: Any) -> tuple[int, ...]:
    """`eos_token_id` in a config: an int, a list of them, or null."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool))


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    special: dict[str, str] = {}
    for source in sources:
        for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"):
            value = source.get(name)
            value = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(value, str):
                special.setdefault(name, value)
    return special


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates of a folder: files win over `tokenizer_config.json`, as in transformers."""
    named = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(named, str):
        templates["default"] = named
    elif isinstance(named, list):
        templates |= {str(entry["name"]): str(entry["template"]) for entry in named}
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    return templates | {name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelFileError(f"{file} is no valid JSON: {error}.", fix="Fetch the model again.") from error
    return value if isinstance(value, dict) else {}


def _no_tokenizer(folder: Path) -> ModelFileError:
    if any(folder.glob("*.model")):
        return ModelFileError(
            f"{folder} has a SentencePiece model only, and no tokenizer.json.",
            fix="Write one with transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder), "
            "or give --tokenizer a folder that has one.",
            param="tokenizer",
        )
    return ModelFileError(
        f"{folder} has no tokenizer.json.",
        fix="Give --tokenizer a folder that has one, or serve token ids only with --skip-tokenizer-init.",
        param="tokenizer",
    )
