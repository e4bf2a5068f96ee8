"""What comes out keeps its schema, pattern, choice, grammar or tag, whatever the model would rather say."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.grammar.structured import from_json_schema
from tests.grammar.schemas import random_schema


def answers(llm: LLM, specs: list[StructuredOutputs], **changes):
    params = [
        SamplingParams(temperature=1.0, seed=i, structured_outputs=spec, **{"max_tokens": 300, **changes})
        for i, spec in enumerate(specs)
    ]
    results = llm.generate([f"Question {i}: " for i in range(len(specs))], params, use_tqdm=False)
    return [sample for result in results for sample in result.outputs]


def test_two_hundred_schemas_are_kept(tiny_llm: LLM) -> None:
    rng = random.Random(4)
    schemas = [random_schema(rng) for _ in range(200)]
    outputs = answers(tiny_llm, [from_json_schema(schema, any_whitespace=False) for schema in schemas])
    ended = [(schema, out) for schema, out in zip(schemas, outputs, strict=True) if out.finish_reason == "stop"]
    assert {out.finish_reason for out in outputs} <= {"stop", "length"}
    assert len(ended) > 180  # the others recurse further than their tokens reach
    for schema, out in ended:
        jsonschema.validate(json.loads(out.text), schema)
    assert tiny_llm.stats().jump_tokens > 1000
    assert tiny_llm.stats().num_free_pages == tiny_llm.stats().num_pages


@pytest.mark.parametrize("pattern", [r"\d{3}-\d{4}", "(ab|c/d)+x{2,5}", r"[äöü]{2} \$", r"^a\.b$"])
def test_patterns_are_kept(tiny_llm: LLM, pattern: str) -> None:
    for out in answers(tiny_llm, [StructuredOutputs(regex=pattern)] * 4):
        assert out.finish_reason == "stop"
        assert re.fullmatch(pattern.strip("^") if pattern.startswith("^") else pattern, out.text, re.ASCII), out.text


def test_choices_are_kept_to_the_letter(tiny_llm: LLM) -> None:
    choices = ("yes", "no (maybe)", "a/b\\c", 'quo"te', "line\nbreak", "größe", "🙂", "[x]{2}^$")
    for choice in choices:
        (out,) = answers(tiny_llm, [StructuredOutputs(choice=(choice,))])
        assert (out.text, out.finish_reason) == (choice, "stop")
    assert {out.text for out in answers(tiny_llm, [StructuredOutputs(choice=choices)] * 6)} <= set(choices)


@pytest.mark.parametrize(
    "grammar",
    ['root ::= "(" digits ")"\ndigits ::= [0-9] [0-9]? ("," digits)?', 'start: "(" D ("," D)* ")"\nD: /[0-9]{1,2}/'],
)
def test_grammars_are_kept_in_both_notations(tiny_llm: LLM, grammar: str) -> None:
    for out in answers(tiny_llm, [StructuredOutputs(grammar=grammar)] * 4):
        if out.finish_reason == "stop":
            assert re.fullmatch(r"\(\d\d?(,\d\d?)*\)", out.text)


def test_json_object_is_an_object(tiny_llm: LLM) -> None:
    outputs = answers(tiny_llm, [StructuredOutputs(json_object=True, disable_any_whitespace=True)] * 4)
    assert all(out.text.startswith("{") for out in outputs)
    assert all(isinstance(json.loads(out.text), dict) for out in outputs if out.finish_reason == "stop")


def test_sections_of_free_text_keep_their_schema(tiny_llm: LLM) -> None:
    tag = {"structures": [{"begin": "a", "schema": {"enum": [12, "z"]}, "end": ";"}], "triggers": ["a"]}
    for out in answers(tiny_llm, [StructuredOutputs(structural_tag=tag)] * 4, max_tokens=400):
        sections = re.findall(r'a(12;|"z";|)', out.text[:-6])
        assert all(sections), out.text
    biased = answers(tiny_llm, [StructuredOutputs(structural_tag=tag)], logit_bias={ord("a") - 33 + 5: 50.0})
    assert re.search(r'a(12|"z");', biased[0].text)


def test_an_answer_of_each_sample(tiny_llm: LLM) -> None:
    outputs = answers(tiny_llm, [StructuredOutputs(regex="[a-z]{8}")], n=4)
    assert all(re.fullmatch("[a-z]{8}", out.text) for out in outputs)
    assert len({out.text for out in outputs}) > 1


def test_min_tokens_delays_the_end_and_no_more(tiny_llm: LLM) -> None:
    (long,) = answers(tiny_llm, [StructuredOutputs(regex="a{1,30}")], min_tokens=20)
    assert len(long.text) >= 20
    (short,) = answers(tiny_llm, [StructuredOutputs(regex="[ab]{3}")], min_tokens=20)
    assert (len(short.text), short.finish_reason) == (3, "stop")


def test_ignore_eos_runs_to_the_grammars_own_end(tiny_llm: LLM) -> None:
    (out,) = answers(tiny_llm, [StructuredOutputs(regex="a{1,9}")], ignore_eos=True)
    assert (out.text, out.finish_reason) == ("a" * 9, "stop")


def test_stop_strings_and_lengths_end_it_early(tiny_llm: LLM) -> None:
    (stopped,) = answers(tiny_llm, [StructuredOutputs(regex="ab-[xyz]{40}")], stop=("b-",))
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("a", "stop", "b-")
    (cut,) = answers(tiny_llm, [StructuredOutputs(choice=("forced text",))], max_tokens=4)
    assert (cut.text, cut.finish_reason, len(cut.token_ids)) == ("forc", "length", 4)


def test_jumping_ahead_changes_no_text(tiny_llm: LLM) -> None:
    """Logprobs need every token drawn, so they switch it off."""
    schema = {"type": "object", "properties": {"first": {"enum": [1, 2]}, "second": {"type": "boolean"}}}
    spec = from_json_schema({**schema, "required": ["first", "second"], "additionalProperties": False})
    before = tiny_llm.stats().jump_tokens
    drawn = answers(tiny_llm, [spec] * 3, logprobs=0)
    between = tiny_llm.stats().jump_tokens
    jumped = answers(tiny_llm, [spec] * 3)
    assert between == before and tiny_llm.stats().jump_tokens > between
    assert [out.token_ids for out in drawn] == [out.token_ids for out in jumped]
    assert all(len(out.logprobs or []) == len(out.token_ids) for out in drawn)


def test_ids_that_the_grammar_needs_but_may_not_have_fail_the_request_alone(tiny_llm: LLM) -> None:
    from octavo.errors import RequestFailedError

    params = SamplingParams(structured_outputs=StructuredOutputs(regex="a+"), banned_token_ids=(ord("a") - 33 + 5,))
    try:
        outputs = tiny_llm.generate("x", params, use_tqdm=False)[0].outputs
    except RequestFailedError as error:
        assert "none that it allows" in str(error)
    else:
        assert outputs[0].finish_reason == "error" and "none that it allows" in outputs[0].error
    assert answers(tiny_llm, [StructuredOutputs(choice=("ok",))])[0].text == "ok"
