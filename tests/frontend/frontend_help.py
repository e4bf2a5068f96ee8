"""Small real vocabularies, and requests to feed processors with."""

from __future__ import annotations

import json
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import hypothesis
import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.frontend.tokenizer import Tokenizer
from octavo.request import EngineRequest, SamplingParams

settings = hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=150)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog does not mind, and the fox jumps again and again.",
    "It's what they'll do: we've 123 apples, 4567 pears and 89 plums; I'd say that's plenty, isn't it?",
    "def main(argv: list[str]) -> int:\n    for item in argv:\n        print(item)\n    return 0\n",
    "naïve café, größer, señor, 日本語 テキスト, 한국어, русский текст, Ελληνικά, עברית",
] * 3
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<think>", "</think>")

# Text that is hard on tokenizers: spaces, digits, contractions, marks, emoji sequences, controls, look-alikes.
HARD_TEXTS = [
    "",
    " ",
    "  ",
    "   lead",
    "trail   ",
    "a  b   c    d",
    "\t\tx\t",
    "line\nline\r\nline\r\rline\n\n\n",
    "\u00a0x\u2003y\u3000z",
    "12345 6 789.01 ١٢٣ ²³ Ⅷ ½ 〇",
    "don't DON'T we'll We'LL 'tis ''' 's'",
    "a\u0301e\u0308 café cafe\u0301",
    "ｆｕｌｌ ｗｉｄｔｈ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 😀😀😀",
    "日本語のテキスト。한국어 텍스트! العربية עברית हिन्दी ไทย",
    "\x00\x01\x7f\x80\x9f",
    "\ufeffBOM \u200bzero\u200dwidth",
    "snake_case camelCase kebab-case CONST_NAME x=y+z; // c++ #include <stdio.h>",
    "https://example.org/a?b=c&d=%20#e",
    '{"k": [1, 2.5e-3, null, "\\u00e9"]}',
    "<|im_start",
    "|im_end|>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|>x",
    "<th<think>ink>",
    "Ġ Ċ ▁ the ▁▁ <0x0A>",
    "\U0010ffff\U000e0001 \ufffd \ufdd0",
    "e" * 300,
    "ab" * 200,
    " " * 130,
    "\n" * 70,
    "🙂" * 40,
]

texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="ab <|>_imendstart\n'’1²é😀▁Ġ", max_size=60),
    st.lists(st.sampled_from([*HARD_TEXTS, *CONTROL, *USER_DEFINED]), max_size=4).map("".join),
)


@lru_cache
def byte_level_metadata(pre: str = "smollm", num_tokens: int = 700) -> dict[str, Any]:
    """GGUF metadata of a byte-level vocabulary, trained on the corpus; ids 0 to 2 are control tokens."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        special_tokens=[*CONTROL, *USER_DEFINED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    vocab = trained.get_vocab()
    description = json.loads(trained.to_str())
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in CONTROL else 4 if t in USER_DEFINED else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in description["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


@lru_cache
def sentencepiece_metadata(add_space_prefix: bool = True) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece vocabulary: control, bytes, pieces with scores, as Llama 2's is laid out."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    vocab = trained.get_vocab()
    pieces = sorted(vocab, key=vocab.__getitem__)
    pieces += [space for space in ("▁▁", "▁▁▁▁") if space not in vocab]
    merged = [piece for piece in pieces if len(piece) > 1]
    single = [piece for piece in pieces if len(piece) == 1]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *merged, *single]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(merged))] + [-1e6 - rank for rank in range(len(single))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }


@lru_cache
def byte_level(pre: str = "smollm") -> Tokenizer:
    return Tokenizer.from_gguf(SimpleNamespace(metadata=byte_level_metadata(pre)))


@lru_cache
def sentencepiece(add_space_prefix: bool = True) -> Tokenizer:
    return Tokenizer.from_gguf(SimpleNamespace(metadata=sentencepiece_metadata(add_space_prefix)))


@lru_cache
def word_pieces() -> Tokenizer:
    """A vocabulary whose decoder is no matter of bytes."""
    words = ["[UNK]", "[SEP]", "hello", "world", "##s", "##ing", ",", "."]
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[SEP]"])
    return Tokenizer(backend)


def request(handle: int = 1, prompt: list[int] | None = None, **params: Any) -> EngineRequest:
    """A resolved request."""
    return EngineRequest(
        handle=handle,
        request_id=f"r{handle}",
        prompt_token_ids=prompt or [5],
        params=SamplingParams(**{"max_tokens": 1000, "seed": 0, **params}),
        arrival_time=100.0,
    )
