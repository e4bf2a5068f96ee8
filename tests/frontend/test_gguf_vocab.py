"""Tokenizers built from GGUF metadata, against independent oracles."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from types import SimpleNamespace

import pytest
import tokenizers
from frontend_help import (
    CONTROL,
    HARD_TEXTS,
    byte_level,
    byte_level_metadata,
    sentencepiece,
    sentencepiece_metadata,
    settings,
    texts,
)
from hypothesis import given
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from octavo.errors import ModelFileError
from octavo.frontend.gguf_vocab import build_tokenizer
from octavo.frontend.pre_tokenizers import PRE_TOKENIZERS
from octavo.frontend.tokenizer import Tokenizer

# As in the models' own tokenizer.json files.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def published(split: pre_tokenizers.PreTokenizer, **model: bool) -> tokenizers.Tokenizer:
    """The pipeline a model's own tokenizer.json describes, over the test's vocabulary."""
    metadata = byte_level_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    built = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, **model))
    built.pre_tokenizer = split
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    built.add_tokens([AddedToken(token, normalized=False, special=False) for token in ("<think>", "</think>")])
    return built


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level_only])


PUBLISHED = {
    "smollm": published(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ),
    "gpt-2": published(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama-bpe": published(split_by(LLAMA3), ignore_merges=True),
    "qwen2": published(split_by(QWEN2)),
}
PUBLISHED["qwen2"].normalizer = tokenizers.normalizers.NFC()


@pytest.mark.parametrize("pre", PUBLISHED)
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_byte_level_ids_are_those_of_the_published_pipeline(pre: str, text: str) -> None:
    assert byte_level(pre).encode(text, add_special_tokens=False) == PUBLISHED[pre].encode(text).ids


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_ids_are_those_of_the_published_pipeline_for_any_text(pre: str) -> None:
    @settings
    @given(texts)
    def check(text: str) -> None:
        assert byte_level(pre).encode(text, add_special_tokens=False) == PUBLISHED[pre].encode(text).ids

    check()


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_known_split_loses_nothing(pre: str) -> None:
    tokenizer = byte_level(pre)
    for text in HARD_TEXTS:
        expected = unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[pre].nfc else text
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), False) == expected


def test_default_split_is_cut_the_way_llama_cpp_does() -> None:
    pieces = [piece for piece, _ in PRE_TOKENIZERS["default"].build().pre_tokenize_str("It's 12345, a+b")]
    assert pieces == ["It", "'", "s", "Ġ", "123", "45", ",", "Ġa", "+", "b"]


def sentencepiece_oracle(text: str, metadata: dict) -> list[int]:
    """SentencePiece's BPE by its definition: join the neighbours that make the best-scored piece, leftmost first."""
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    ids = {t: i for i, t in enumerate(tokens)}
    score = {
        t: s for t, s, kind in zip(tokens, metadata["tokenizer.ggml.scores"], kinds, strict=True) if kind in (1, 4)
    }
    if not text:
        return []
    symbols = list(("▁" if metadata["tokenizer.ggml.add_space_prefix"] else "") + text.replace(" ", "▁"))
    while True:
        joined = [(score.get(a + b, float("-inf")), -i) for i, (a, b) in enumerate(pairwise(symbols))]
        best, at = max(joined, default=(float("-inf"), 0))
        if best == float("-inf"):
            break
        symbols[-at : -at + 2] = [symbols[-at] + symbols[-at + 1]]
    return [i for s in symbols for i in ([ids[s]] if s in score else [ids[f"<0x{b:02X}>"] for b in s.encode()])]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", [text for text in HARD_TEXTS if len(text) < 300])
def test_sentencepiece_ids_follow_its_definition(prefix: bool, text: str) -> None:
    metadata = sentencepiece_metadata(prefix)
    expected = sentencepiece_oracle(text, metadata)
    assert sentencepiece(prefix).encode(text, add_special_tokens=False) == expected


@settings
@given(texts)
def test_sentencepiece_ids_follow_its_definition_for_any_text(text: str) -> None:
    plain = sentencepiece().encode(text, add_special_tokens=False, parse_special=False)
    assert plain == sentencepiece_oracle(text, sentencepiece_metadata(True))


def test_control_tokens_of_sentencepiece_take_no_part_in_merges() -> None:
    tokenizer = sentencepiece()
    assert 2 not in tokenizer.encode("</s>", parse_special=False)
    assert tokenizer.encode("</s>", add_special_tokens=False) == [2]


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    base = byte_level_metadata()
    for add_bos, add_eos in [(False, False), (True, False), (False, True), (True, True)]:
        metadata = base | {"tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_eos}
        tokenizer = Tokenizer.from_gguf(SimpleNamespace(metadata=metadata))
        bare = tokenizer.encode("hi", add_special_tokens=False)
        assert tokenizer.encode("hi") == [1] * add_bos + bare + [2] * add_eos
        assert tokenizer.encode("hi", parse_special=False) == [1] * add_bos + bare + [2] * add_eos


def test_bos_defaults_follow_the_kind() -> None:
    without = {k: v for k, v in byte_level_metadata().items() if k != "tokenizer.ggml.add_bos_token"}
    for pre, expected in [("llama-bpe", True), ("smollm", False), ("qwen2", False), ("tekken", True)]:
        _, vocab = build_tokenizer(without | {"tokenizer.ggml.pre": pre})
        assert vocab.add_bos is expected
    assert sentencepiece().encode("hi")[0] == 1


def test_end_ids_are_eos_eot_and_eom_once_each() -> None:
    metadata = byte_level_metadata() | {
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.eom_token_id": 2,
        "tokenizer.ggml.eos_token_id": 2,
    }
    assert Tokenizer.from_gguf(SimpleNamespace(metadata=metadata)).eos_token_ids == (2, 0)


def test_chat_templates_are_read_by_name() -> None:
    metadata = byte_level_metadata() | {
        "tokenizer.chat_template": "A",
        "tokenizer.chat_template.tool_use": "B",
        "tokenizer.chat_templates": ["tool_use"],
    }
    tokenizer = Tokenizer.from_gguf(SimpleNamespace(metadata=metadata))
    assert tokenizer.chat_template == "A"
    assert tokenizer.facts.chat_templates == {"default": "A", "tool_use": "B"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.model": "t5"}, "'t5'"),
        ({"tokenizer.ggml.model": None}, "None"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'unheard-of'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["q nosuchpiece"]}, "nosuchpiece"),
        ({"tokenizer.ggml.merges": ["nospace"]}, "nospace"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "2 token types"),
    ],
)
def test_impossible_metadata_is_refused_with_a_fix(change: dict, says: str) -> None:
    metadata = {k: v for k, v in (byte_level_metadata() | change).items() if v is not None}
    with pytest.raises(ModelFileError, match=says.replace("'", ".")) as caught:
        build_tokenizer(metadata)
    assert caught.value.fix


def test_sentencepiece_without_scores_is_refused() -> None:
    with pytest.raises(ModelFileError, match="scores"):
        build_tokenizer(sentencepiece_metadata() | {"tokenizer.ggml.scores": [1.0]})


def test_repeated_and_empty_spellings_keep_ids_in_place() -> None:
    base = byte_level_metadata()
    tokens = [*base["tokenizer.ggml.tokens"], "", "", base["tokenizer.ggml.tokens"][-1]]
    metadata = base | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}
    tokenizer = Tokenizer.from_gguf(SimpleNamespace(metadata=metadata))
    assert tokenizer.vocab_size == len(tokens)
    assert [tokenizer.token_text(i) for i in range(len(tokens) - 3)] == tokens[:-3]
