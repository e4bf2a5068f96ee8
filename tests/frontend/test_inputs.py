"""Requests as the engine gets them, and what is refused before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import templates
from frontend_help import byte_level, byte_level_metadata, word_pieces

from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.frontend.inputs import InputProcessor
from octavo.frontend.tokenizer import Tokenizer, TokenizerFacts
from octavo.request import EngineRequest, SamplingParams

VOCAB = byte_level().vocab_size + 12  # logits are often wider than the vocabulary


def processor(tokenizer: Tokenizer | None = None, **options: Any) -> InputProcessor:
    options = {"vocab_size": VOCAB, "max_model_len": 64, "seed": 7, "chat_template": templates.CHATML, **options}
    return InputProcessor(tokenizer or byte_level(), **options)


def complete(prompt: Any, made: InputProcessor | None = None, **fields: Any) -> EngineRequest:
    names = {"request_id", "handle", "priority", "cache_salt", "adapter", "arrival_time", "add_special_tokens"}
    routing = {"request_id": "r", "handle": 3} | {k: fields.pop(k) for k in list(fields) if k in names}
    return (made or processor()).completion(prompt, SamplingParams(**fields), **routing)


def test_a_text_becomes_ids_and_resolved_parameters() -> None:
    got = complete("hello dog", priority=2, cache_salt="s-1", arrival_time=5.0, stop=("x",))
    assert got.prompt_token_ids == byte_level().encode("hello dog")
    assert (got.handle, got.request_id, got.priority, got.cache_salt, got.arrival_time) == (3, "r", 2, "s-1", 5.0)
    assert got.eos_token_ids == (2,)
    assert got.params.max_tokens == 16
    assert isinstance(got.params.seed, int)


def test_ids_are_taken_as_they_are_and_copied() -> None:
    ids = [5, 6, VOCAB - 1]
    got = complete(ids)
    assert got.prompt_token_ids == ids
    assert got.prompt_token_ids is not ids
    assert complete((5, 6)).prompt_token_ids == [5, 6]
    assert complete(np.array([5, 6])).prompt_token_ids == [5, 6]


def test_control_tokens_in_a_completion_prompt_are_parsed() -> None:
    assert complete("<|im_start|>").prompt_token_ids == [1]


def test_a_text_gets_the_models_bos_unless_told_not_to() -> None:
    from types import SimpleNamespace

    metadata = byte_level_metadata() | {"tokenizer.ggml.add_bos_token": True}
    made = processor(Tokenizer.from_gguf(SimpleNamespace(metadata=metadata)))
    assert complete("a", made).prompt_token_ids[0] == 1
    assert complete("a", made, add_special_tokens=False).prompt_token_ids[0] != 1
    assert complete([5], made).prompt_token_ids == [5]


def test_no_max_tokens_means_what_the_context_leaves() -> None:
    assert complete([5] * 10, max_tokens=None).params.max_tokens == 54
    assert complete([5] * 63, max_tokens=None).params.max_tokens == 1


def test_prompt_and_output_must_fit_the_context() -> None:
    assert complete([5] * 60, max_tokens=4).params.max_tokens == 4
    with pytest.raises(ContextLengthError, match=r"60 tokens and max_tokens asks for 5 more, 65 in all") as caught:
        complete([5] * 60, max_tokens=5)
    assert "at most 4" in caught.value.fix
    assert caught.value.param == "max_tokens"
    with pytest.raises(ContextLengthError, match="64 tokens"):
        complete([5] * 64, max_tokens=None)
    with pytest.raises(InvalidRequestError, match="context leaves 4"):
        complete([5] * 60, max_tokens=None, min_tokens=5)


def test_text_far_too_long_is_refused_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = processor()
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("was encoded"))
    with pytest.raises(ContextLengthError, match="characters"):
        complete("x" * 1_000_000, made)
    with pytest.raises(ContextLengthError, match="characters"):
        made.render_chat([{"role": "user", "content": "x" * 1_000_000}])


@pytest.mark.parametrize(
    "prompt", [[], "", [-1], [VOCAB], [2**70], [1.0], [True], ["a"], [None], [[5]], None, 5, {"a": 1}, b"ab"]
)
def test_prompts_that_are_none_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        complete(prompt)
    assert caught.value.param == "prompt"
    assert caught.value.fix


@pytest.mark.parametrize("salt", ["a b", "ü", "x" * 129, "a\n", "../x", 3, None])
def test_odd_salts_are_refused(salt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        complete([5], cache_salt=salt)
    assert caught.value.param == "cache_salt"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", 2**31),
        ("priority", 1.5),
        ("priority", None),
        ("request_id", "a b"),
        ("request_id", ""),
        ("request_id", "x" * 257),
    ],
)
def test_odd_routing_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        complete([5], **{name: value})
    assert caught.value.param == name


def test_adapters_must_be_known() -> None:
    assert complete([5], processor(adapters=["poet"]), adapter="poet").adapter == "poet"
    with pytest.raises(InvalidRequestError, match="'pirate'") as caught:
        complete([5], processor(adapters=["poet"]), adapter="pirate")
    assert "poet" in caught.value.fix


def test_seeds_are_the_requests_own_or_drawn_repeatably() -> None:
    assert complete([5], seed=-5).params.seed == -5
    first, second = processor(seed=1), processor(seed=1)
    drawn = [complete([5], first).params.seed for _ in range(20)]
    assert drawn == [complete([5], second).params.seed for _ in range(20)]
    assert len(set(drawn)) == 20
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert complete([5], processor(seed=None)).params.seed != complete([5], processor(seed=None)).params.seed


def test_a_conversation_becomes_ids() -> None:
    made = processor()
    messages = [{"role": "user", "content": "hi"}]
    got = made.chat(messages, SamplingParams(max_tokens=None), request_id="r", handle=1)
    text, ids = made.render_chat(messages)
    assert text.endswith("<|im_start|>assistant\n")
    assert got.prompt_token_ids == ids == byte_level().encode(text)
    assert got.params.max_tokens == 64 - len(ids)


def test_a_conversation_gets_no_second_bos() -> None:
    from types import SimpleNamespace

    metadata = byte_level_metadata() | {"tokenizer.ggml.add_bos_token": True}
    made = processor(Tokenizer.from_gguf(SimpleNamespace(metadata=metadata)))
    _, ids = made.render_chat([{"role": "user", "content": "hi"}])
    assert ids[0] == 1
    assert ids[1] != 1


def test_tools_choose_the_template_for_tools() -> None:
    facts = TokenizerFacts(chat_templates={"default": "plain", "tool_use": "tools"})
    made = processor(Tokenizer(byte_level().backend, facts), chat_template=None)
    assert made.render_chat([{"role": "user", "content": "x"}])[0] == "plain"
    assert made.render_chat([{"role": "user", "content": "x"}], [{"type": "function"}])[0] == "tools"
    given = processor(Tokenizer(byte_level().backend, facts), chat_template="own")
    assert given.render_chat([{"role": "user", "content": "x"}], [{"type": "function"}])[0] == "own"


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(InvalidRequestError, match="no chat template"):
        processor(word_pieces(), chat_template=None).render_chat([{"role": "user", "content": "x"}])


def test_without_a_tokenizer_there_are_ids_only() -> None:
    made = InputProcessor(None, vocab_size=10, max_model_len=8)
    assert complete([5], made, max_tokens=2).prompt_token_ids == [5]
    assert complete([5], made, max_tokens=2).eos_token_ids == ()
    for ask in (
        lambda: complete("text", made, max_tokens=2),
        lambda: complete([5], made, max_tokens=2, stop=("a",)),
        lambda: made.render_chat([{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            ask()


def test_a_conversation_with_an_empty_rendering_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        processor(chat_template="{# nothing #}").render_chat([{"role": "user", "content": "x"}])
