"""What streams out is what decoding all at once gives, however it is cut."""

from __future__ import annotations

import pytest
from frontend_help import byte_level, sentencepiece, settings, texts, word_pieces
from hypothesis import given
from hypothesis import strategies as st

from octavo.frontend.detokenizer import detokenizer
from octavo.frontend.tokenizer import Tokenizer

random_ids = st.lists(st.integers(0, 800), max_size=60)


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = True, continuation: bool = False) -> list[str]:
    stream = detokenizer(tokenizer, skip, continuation)
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "sentencepiece_no_prefix"])
def test_any_ids_stream_to_what_decoding_at_once_gives(name: str) -> None:
    tokenizer = {"byte_level": byte_level(), "sentencepiece": sentencepiece()}.get(name, sentencepiece(False))

    @settings
    @given(random_ids, st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)

    check()


@settings
@given(texts)
def test_text_streams_in_whole_characters(text: str) -> None:
    tokenizer = byte_level()
    pieces = stream(tokenizer, tokenizer.encode(text, parse_special=False))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    tokenizer = byte_level()
    ids = [tokenizer.backend.token_to_id(char) for char in ("ð", "Ł", "ĺ", "Ģ")]  # F0 9F 98 80
    assert stream(tokenizer, ids) == ["", "", "", "😀", ""]
    assert stream(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    a = tokenizer.encode("a")
    assert stream(tokenizer, [*ids[:2], *a, ids[2]]) == ["", "", "\ufffda", "\ufffd", ""]


def test_control_tokens_inside_a_character_do_not_break_it_when_skipped() -> None:
    tokenizer = byte_level()
    first, second = (tokenizer.backend.token_to_id(char) for char in ("Ã", "©"))
    assert "".join(stream(tokenizer, [first, 1, second])) == "é"
    assert "".join(stream(tokenizer, [first, 1, second], skip=False)) == "\ufffd<|im_start|>\ufffd"


def test_a_leading_space_goes_only_where_text_begins() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("the dog", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == "the dog"
    assert "".join(stream(tokenizer, ids, continuation=True)) == " the dog"
    assert "".join(stream(tokenizer, [1, *ids], skip=False)) == "<s> the dog"
    no_prefix = sentencepiece(False)
    spaced = no_prefix.encode(" the dog", add_special_tokens=False)
    assert "".join(stream(no_prefix, spaced)) == " the dog"


def test_flushing_twice_gives_the_rest_once() -> None:
    tokenizer = byte_level()
    stream = detokenizer(tokenizer)
    assert stream.push(tokenizer.backend.token_to_id("ð")) == ""
    assert (stream.flush(), stream.flush()) == ("\ufffd", "")


def test_pushing_many_is_pushing_each() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("größer 日本語 😀")
    assert detokenizer(tokenizer).push_all(ids) == tokenizer.decode(ids)


@settings
@given(st.lists(st.integers(0, 9), max_size=30), st.booleans())
def test_other_decoders_stream_through_the_library(ids: list[int], skip: bool) -> None:
    tokenizer = word_pieces()
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)
