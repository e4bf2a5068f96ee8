"""The splits that precede byte-level BPE, by the names GGUF files use for them (`tokenizer.ggml.pre`).

A merge table only means something behind the split it was learned with, so an unknown name is refused, not guessed.
Patterns are those of the models' own `tokenizer.json` files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from octavo.errors import ModelFileError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASH_TAIL}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_SLASH_TAIL}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before byte-level BPE.

    Attributes:
        patterns: regular expressions, applied one after the other to what the one before left; matches and the
            text between them become pieces.
        ignore_merges: a piece that is a token is that token, whatever the merges say.
        add_bos: the default where the file has no `tokenizer.ggml.add_bos_token`.
        nfc: text is normalized to NFC first.
        digits: each digit is a piece of its own, before the patterns are applied.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False
    digits: bool = False

    def build(self) -> Any:
        """The `tokenizers` pre-tokenizer."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        digits = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        return pre_tokenizers.Sequence(
            [*digits, *splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    def normalizer(self) -> Any:
        """The `tokenizers` normalizer, or None."""
        return normalizers.NFC() if self.nfc else None


_BY_SPLIT: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer(_DEFAULT)),
    ("gpt-2 phi-2 gigachat mellum a.x-4.0 exaone4 mpt olmo jais trillion granite-docling", PreTokenizer((_GPT2,))),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b", PreTokenizer((_GPT2,), digits=True)),
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer((_LLAMA3,))),
    ("qwen2 deepseek-r1-qwen kormo megrez", PreTokenizer((_QWEN2,), nfc=True)),
    ("stablelm2 hunyuan grok-2", PreTokenizer((_QWEN2,))),
    ("tekken", PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 minimax-m2", PreTokenizer((_GPT4O,))),
    ("deepseek-v3 hunyuan-dense", PreTokenizer(_DEEPSEEK3)),
)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: split for names, split in _BY_SPLIT for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The split of that name.

    Raises:
        ModelFileError: the name is not known here.
    """
    if name not in PRE_TOKENIZERS:
        raise ModelFileError(
            f"The file's pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known; "
            "guessing one would change the text's tokens.",
            fix="Give --tokenizer a folder with the model's tokenizer.json.",
            param="tokenizer",
        )
    return PRE_TOKENIZERS[name]
