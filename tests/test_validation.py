"""What passes the validator cannot harm the engine; what does not is told why."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.request import SamplingParams, StructuredOutputs
from octavo.validation import resolve_max_tokens, validate_params, validate_prompt, validate_routing

LIMITS: dict[str, Any] = {"vocab_size": 100, "max_model_len": 50, "max_logprobs": 5}
NAN, INF = math.nan, math.inf


def check(eos_token_ids: tuple[int, ...] = (), has_tokenizer: bool = True, **fields: Any) -> None:
    validate_params(SamplingParams(**fields), **LIMITS, eos_token_ids=eos_token_ids, has_tokenizer=has_tokenizer)


GOOD: list[dict[str, Any]] = [
    {},
    {"n": 128},
    {"temperature": 0},
    {"temperature": 0.0},
    {"temperature": 1e-3},
    {"temperature": 2},
    {"top_p": 1e-9},
    {"top_p": 1},
    {"top_k": -1},
    {"top_k": 0},
    {"top_k": 10**6},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"repetition_penalty": 1e-6},
    {"repetition_penalty": 100},
    {"presence_penalty": -2, "frequency_penalty": 2},
    {"max_tokens": None},
    {"max_tokens": 1},
    {"max_tokens": 16, "min_tokens": 16},
    {"max_tokens": None, "min_tokens": 50},
    {"seed": 0},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
    {"stop": ("a",) * 16},
    {"stop": ["a"]},
    {"stop": ("x" * 1024,)},
    {"stop_token_ids": tuple(range(100))},
    {"logprobs": 0},
    {"logprobs": 5, "prompt_logprobs": 5},
    {"logit_bias": {}},
    {"logit_bias": {0: -100, 99: 100.0}},
    {"allowed_token_ids": (0, 99)},
    {"banned_token_ids": tuple(range(99))},
    {"allowed_token_ids": (1, 2), "banned_token_ids": (1,)},
    {"allowed_token_ids": (1, 2), "stop_token_ids": (1,), "min_tokens": 3},
    {"detokenize": False},
    {"use_beam_search": True, "temperature": 0.0, "n": 4, "length_penalty": -2.5, "early_stopping": "never"},
    {"use_beam_search": True, "temperature": 0, "top_k": -1, "stop_token_ids": (1,), "logprobs": 2, "min_tokens": 3},
]

BAD: list[tuple[str, Any]] = [
    *[
        ("structured_outputs", value)
        for value in ("json", {}, StructuredOutputs(), StructuredOutputs(regex="a{9999}{9}"))
    ],
    *[("n", value) for value in (0, -1, 129, 2**70, 1.0, True, "1", None)],
    *[("temperature", value) for value in (-0.1, 2.01, NAN, INF, -INF, "1", None, True, [], 10**400)],
    *[("top_p", value) for value in (0, 0.0, -1, 1.01, NAN, INF, "1", None)],
    *[("top_k", value) for value in (-2, 1.5, True, 2**31, "1", None)],
    *[("min_p", value) for value in (-0.1, 1.1, NAN, INF, None)],
    *[("repetition_penalty", value) for value in (0, -1, 100.1, NAN, INF, None)],
    *[(name, v) for name in ("presence_penalty", "frequency_penalty") for v in (-2.1, 2.1, NAN, INF, None, "0")],
    *[("max_tokens", value) for value in (0, -1, 1.5, True, "1", 2**31, NAN)],
    *[("min_tokens", value) for value in (-1, 17, 51, 1.5, True, None)],
    *[("seed", value) for value in (2**63, -(2**63) - 1, 1.5, True, "1", NAN, 10**5000)],
    *[
        ("stop", value)
        for value in ("abc", ("",), ("a", 3), (None,), None, ("a",) * 17, ("x" * 1025,), 3, ("x" * 1000,) * 5)
    ],
    *[("stop_token_ids", v) for v in ((-1,), (100,), (2**31,), (2**63,), (1.0,), (True,), ("1",), None, 3, (1,) * 129)],
    *[(name, v) for name in ("logprobs", "prompt_logprobs") for v in (-1, 6, 1.0, True, "1", NAN)],
    *[
        ("logit_bias", value)
        for value in ({-1: 0}, {100: 0}, {2**31: 0}, {2**63: 0}, {"1": 0}, {1.0: 0}, {1: 100.1}, {1: -101}, {1: NAN})
    ],
    *[("logit_bias", value) for value in ({1: INF}, {1: None}, {1: "2"}, {1: True}, [1], [(1, 2)], 3)],
    *[("allowed_token_ids", value) for value in ((), (-1,), (100,), (1.0,), "1", {1}, (True,))],
    *[("banned_token_ids", value) for value in ((-1,), (100,), None, tuple(range(100)), (1,) * 101)],
    *[("include_stop_str_in_output", value) for value in (None, 1, "true")],
    *[("ignore_eos", 1), ("skip_special_tokens", 0), ("detokenize", "no"), ("use_beam_search", 1)],
    *[("length_penalty", value) for value in (-10.1, 10.1, NAN, INF, None, "1", True)],
    *[("kept_special_tokens", value) for value in (None, "x", (1,), ("x",) * 65)],
    *[("early_stopping", value) for value in (None, 1, "always", "")],
]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_what_is_possible_passes(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:40] if value != 10**5000 else "giant")
def test_what_is_not_is_refused_by_name_with_a_fix(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(**{name: value})
    error = caught.value
    assert error.param == name
    assert error.fix
    assert error.status == 400
    assert name in error.message
    assert len(str(error)) < 400


def test_every_field_is_checked() -> None:
    checked = {name for name, _ in BAD}
    assert checked == set(SamplingParams.__struct_fields__)


def test_defaults_pass_and_other_things_are_no_parameters() -> None:
    check()
    for thing in (None, {}, {"n": 1}, "x"):
        with pytest.raises(InvalidRequestError, match="SamplingParams"):
            validate_params(thing, **LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": (1, 2), "banned_token_ids": (2, 1)},
        {"banned_token_ids": tuple(range(100))},
        {"allowed_token_ids": (1,), "stop_token_ids": (1,), "min_tokens": 1},
        {"allowed_token_ids": (7,), "min_tokens": 1},
        {"banned_token_ids": tuple(i for i in range(100) if i != 7), "min_tokens": 1},
    ],
)
def test_some_token_must_be_left_to_choose(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="left to choose"):
        check(eos_token_ids=(7,), **fields)


def test_eos_may_be_the_only_choice_where_it_does_not_end() -> None:
    check(eos_token_ids=(7,), allowed_token_ids=(7,))
    check(eos_token_ids=(7,), allowed_token_ids=(7,), min_tokens=1, ignore_eos=True)


def test_stop_strings_need_text() -> None:
    with pytest.raises(InvalidRequestError, match="detokenize"):
        check(stop=("a",), detokenize=False)
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        check(stop=("a",), has_tokenizer=False)


def test_a_message_shows_a_long_value_shortened() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(stop="x" * 10_000)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("ids", [[0], [99], [1, 2, 3], list(range(49)), (1, 2)])
def test_prompts_of_the_model_pass(ids: Any) -> None:
    validate_prompt(ids, 100, 50)


@pytest.mark.parametrize(
    "ids", [[], (), None, "abc", b"abc", 5, {1}, [-1], [100], [2**63], [1.0], [True], ["1"], [None], [NAN]]
)
def test_other_prompts_are_refused(ids: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_prompt(ids, 100, 50)
    assert caught.value.param == "prompt"


def test_a_prompt_must_leave_room_for_a_token() -> None:
    with pytest.raises(ContextLengthError, match="50 tokens") as caught:
        validate_prompt([1] * 50, 100, 50)
    assert "at most 49" in caught.value.fix
    assert caught.value.code == "context_length_exceeded"


def test_max_tokens_is_resolved_against_the_context() -> None:
    assert resolve_max_tokens(SamplingParams(max_tokens=None), 10, 50) == 40
    assert resolve_max_tokens(SamplingParams(max_tokens=40), 10, 50) == 40
    with pytest.raises(ContextLengthError, match="10 tokens and max_tokens asks for 41 more, 51 in all"):
        resolve_max_tokens(SamplingParams(max_tokens=41), 10, 50)
    with pytest.raises(InvalidRequestError, match="context leaves 40"):
        resolve_max_tokens(SamplingParams(max_tokens=None, min_tokens=41), 10, 50)


def test_a_default_of_max_tokens_counts_where_a_request_names_none() -> None:
    assert resolve_max_tokens(SamplingParams(max_tokens=None), 10, 50, 16) == 16
    assert resolve_max_tokens(SamplingParams(max_tokens=20), 10, 50, 16) == 20
    assert resolve_max_tokens(SamplingParams(max_tokens=None), 40, 50, 16) == 10
    assert resolve_max_tokens(SamplingParams(max_tokens=None, min_tokens=20), 10, 50, 16) == 20


@pytest.mark.parametrize("salt", ["", "a", "A-z_09", "x" * 128])
def test_salts_of_the_alphabet_pass(salt: str) -> None:
    validate_routing(cache_salt=salt)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(SamplingParams.__struct_fields__), json_values, max_size=4))
def test_any_values_pass_or_are_refused_and_what_passes_is_well_formed(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    try:
        validate_params(params, **LIMITS)
    except InvalidRequestError as error:
        assert error.param in SamplingParams.__struct_fields__
        return
    msgspec.json.decode(msgspec.json.encode(params), type=SamplingParams)


@pytest.mark.parametrize(
    "fields",
    [
        *({"temperature": 0.7}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 1.1}),
        *({"presence_penalty": 0.1}, {"frequency_penalty": -1}, {"logit_bias": {1: 1}}, {"allowed_token_ids": (1, 2)}),
        *({"banned_token_ids": (1,)}, {"stop": ("x",)}),
    ],
    ids=str,
)
def test_beams_take_nothing_that_changes_the_choice(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check(**{"use_beam_search": True, "temperature": 0, **fields})
    assert caught.value.param in fields and caught.value.code == "unsupported_value"


def test_there_must_be_tokens_enough_for_every_beam() -> None:
    check(use_beam_search=True, temperature=0, n=98, eos_token_ids=(3, 4))
    with pytest.raises(InvalidRequestError, match="n cannot be 99"):
        check(use_beam_search=True, temperature=0, n=99, eos_token_ids=(3, 4))
