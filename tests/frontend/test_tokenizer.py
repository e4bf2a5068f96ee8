"""`Tokenizer`: from a folder, control tokens as text, bytes of tokens, threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from frontend_help import (
    CONTROL,
    HARD_TEXTS,
    byte_level,
    byte_level_metadata,
    sentencepiece,
    settings,
    texts,
    word_pieces,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers

from octavo.errors import InvalidRequestError, ModelFileError
from octavo.frontend.token_bytes import BYTE_ALPHABET, piece_codec
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    return tmp_path


@settings
@given(texts)
def test_byte_level_decoding_undoes_encoding(text: str) -> None:
    assert byte_level().decode(byte_level().encode(text), skip_special_tokens=False) == text
    assert byte_level().decode(byte_level().encode(text, parse_special=False)) == text


@settings
@given(texts)
def test_sentencepiece_decoding_undoes_encoding(text: str) -> None:
    assume_plain = text.replace("▁", " ")  # the vocabulary has one spelling for both
    assert sentencepiece().decode(sentencepiece().encode(text, parse_special=False)) == assume_plain


@settings
@given(st.lists(st.integers(-2, 800), max_size=40), st.booleans())
def test_byte_level_decoding_is_that_of_the_tokenizers_library(ids: list[int], skip: bool) -> None:
    known = [token_id for token_id in ids if token_id >= 0]
    expected = byte_level().backend.decode(known, skip_special_tokens=skip)
    assert byte_level().decode(ids, skip) == expected


@settings
@given(texts, st.booleans())
def test_sentencepiece_decoding_is_that_of_the_tokenizers_library(text: str, skip: bool) -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip) == tokenizer.backend.decode(ids, skip_special_tokens=skip)


def test_an_invalid_byte_leaves_the_valid_characters_of_its_run() -> None:
    byte = {b: sentencepiece().backend.token_to_id(f"<0x{b:02X}>") for b in range(256)}
    ids = [byte[b] for b in (0xC3, 0xA9, 0xFF, 0x41)]
    assert sentencepiece().decode(ids) == "é\ufffdA"


@pytest.mark.parametrize("text", CONTROL)
def test_control_spellings_are_parsed_only_when_asked(text: str) -> None:
    tokenizer = byte_level()
    assert tokenizer.encode(text) == [CONTROL.index(text)]
    plain = tokenizer.encode(text, parse_special=False)
    assert not any(map(tokenizer.is_special, plain))
    assert tokenizer.decode(plain) == text


@settings
@given(texts)
def test_text_without_parsing_never_gives_a_control_token(text: str) -> None:
    for tokenizer in (byte_level(), byte_level("llama-bpe"), sentencepiece()):
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert not any(tokenizer.is_special(token_id) and token_id != 0 for token_id in ids)


def test_user_defined_tokens_are_text_that_is_one_token() -> None:
    tokenizer = byte_level()
    for parse in (True, False):
        ids = tokenizer.encode("<think>", parse_special=parse)
        assert len(ids) == 1
        assert not tokenizer.is_special(ids[0])
        assert tokenizer.decode(ids) == "<think>"


def test_a_control_token_that_unigram_finds_in_text_is_refused() -> None:
    pieces = [("<unk>", -10.0), ("</s>", 0.0), ("<", -5.0), ("/", -5.0), ("s", -5.0), (">", -5.0), ("a", -5.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("a</s>") == [6, 1]
    with pytest.raises(InvalidRequestError, match="</s>"):
        tokenizer.encode("a</s>", parse_special=False)


def test_lone_surrogates_are_refused() -> None:
    for parse in (True, False):
        with pytest.raises(InvalidRequestError, match="surrogate"):
            byte_level().encode("a\ud800b", parse_special=parse)


def test_token_bytes_join_to_the_texts_bytes() -> None:
    for tokenizer in (byte_level(), sentencepiece(add_space_prefix=False)):
        for text in HARD_TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
            assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text.replace("▁", " ") or "▁" in text


def test_ids_outside_the_vocabulary_give_nothing() -> None:
    tokenizer = byte_level()
    for token_id in (-1, tokenizer.vocab_size, 2**31, 2**40):
        assert tokenizer.token_bytes(token_id) == b""
        assert tokenizer.decode([token_id]) == ""
    assert tokenizer.token_text(tokenizer.vocab_size) is None


def test_byte_alphabet_is_a_bijection_of_all_bytes() -> None:
    assert sorted(BYTE_ALPHABET.values()) == list(range(256))
    assert set(BYTE_ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 2, "stop": 0},
            ],
        },
    ],
)
def test_decoders_that_are_no_matter_of_bytes_have_no_codec(decoder: dict | None) -> None:
    assert piece_codec(decoder) is None


def test_a_folder_gives_what_its_files_say(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("hi <|im_end|>") == byte_level().encode("hi <|im_end|>")
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == (0, 2)
    assert tokenizer.chat_template == "T"
    assert tokenizer.facts.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert tokenizer.vocab_size == byte_level().vocab_size


def test_a_folder_without_generation_config_takes_end_ids_from_its_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    assert Tokenizer.from_folder(folder).eos_token_ids == (0, 2)


def test_template_files_win_over_the_config(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("F")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("U")
    assert Tokenizer.from_folder(folder).facts.chat_templates == {"default": "F", "tool_use": "U"}


def test_named_templates_in_the_config(folder: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "U"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.from_folder(folder).facts.chat_templates == {"default": "D", "tool_use": "U"}


def test_truncation_and_padding_in_a_file_are_not_applied(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).encode("hello there you") == byte_level().encode("hello there you")


def test_a_sentencepiece_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelFileError, match="SentencePiece") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "save_pretrained" in caught.value.fix


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    byte_level().backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{nonsense")
    with pytest.raises(ModelFileError, match="no valid JSON"):
        Tokenizer.from_folder(tmp_path)


def test_a_checkpoint_gives_its_own_tokenizer(folder: Path) -> None:
    gguf = SimpleNamespace(metadata=byte_level_metadata())
    assert load_tokenizer(SimpleNamespace(gguf=gguf, folder=None)).eos_token_ids == (2,)
    assert load_tokenizer(SimpleNamespace(gguf=None, folder=folder)).eos_token_ids == (0, 2)
    assert load_tokenizer(folder).eos_token_ids == (0, 2)
    with pytest.raises(ModelFileError, match="without a folder"):
        load_tokenizer(SimpleNamespace(gguf=None, folder=None))


def test_metaspace_text_after_a_control_token_gets_no_space_of_its_own() -> None:
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(["<s>", "▁", "a", "<", "s", ">"])}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("a<s>a") == [1, 2, 0, 2]
    assert tokenizer.encode_guarded("a<s>a\ufdd0s>", {"\ufdd0": "<"}) == [1, 2, 0, 2, 3, 4, 5]
    assert tokenizer.encode_guarded("\ufdd0s>a<s>a", {"\ufdd0": "<"}) == [1, 3, 4, 5, 2, 0, 2]


def test_threads_that_parse_and_that_do_not_never_meet() -> None:
    tokenizer = byte_level()
    text = "<|im_start|>user<|im_end|>" * 20
    expected = {flag: tokenizer.encode(text, parse_special=flag) for flag in (True, False)}

    def encode(index: int) -> bool:
        return tokenizer.encode(text, parse_special=index % 2 == 0) == expected[index % 2 == 0]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(encode, range(200)))


def test_other_decoders_go_through_the_library() -> None:
    tokenizer = word_pieces()
    ids = [2, 6, 3, 4, 1, 7]
    assert tokenizer.codec is None
    assert tokenizer.decode(ids) == "hello, worlds."
    assert "[SEP]" in tokenizer.decode(ids, skip_special_tokens=False)
