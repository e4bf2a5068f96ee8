"""Every format: what models write comes out as calls, everything else as text, and no chunking changes anything."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError
from octavo.frontend.parsers import TOOL_NAMES, AnswerParser, Offered, get, get_reasoning, read_answer
from octavo.frontend.parsers.cursor import MAX_HELD, Markers
from octavo.frontend.parsers.formats import FORMATS, JSON_ARRAY, named_call
from tests.patience import BUSY

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
OFFERED = Offered({"weather": SCHEMA, "time_in": {"type": "object"}})
NAMES = [each.name for each in FORMATS]
STREAMING = [name for name in NAMES if name not in ("pythonic", "qwen3_coder")]


def told(pieces):
    """Content, reasoning, and calls as (name, arguments)."""
    texts = {"content": "", "reasoning": ""}
    calls = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append([piece.text, ""])
        elif piece.kind == "arguments":
            calls[-1][1] += piece.text
        else:
            texts[piece.kind] += piece.text
    return texts["content"], texts["reasoning"], calls


def parser(form, **options):
    return AnswerParser(get(form) if isinstance(form, str) else form, OFFERED, **options)


def at_once(form, text, **options):
    return told(read_answer(parser(form, **options), text))


def in_chunks(form, chunks, **options):
    answer = parser(form, **options)
    return told([piece for chunk in chunks for piece in answer.feed(chunk)] + answer.finish())


def calls(form, text, **options):
    return [[name, json.loads(arguments)] for name, arguments in at_once(form, text, **options)[2]]


CALL = ["weather", {"city": 'Zürich "x"\n', "days": 3}]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcé", max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
arguments = st.dictionaries(st.sampled_from(["city", "days", "other", "k_2"]), json_values, max_size=3)
FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]", "[", "]", "{", "}", '"', "\\", "\\u00", ",", ";",
    ":", "<function=weather>", "<function=", "<parameter=city>", "</parameter>", "</function>", "<|python_tag|>",
    "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "analysis", "commentary", "final",
    " to=functions.weather", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "function", "weather",
    "weather(", "city=", "'", ")", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```json\n", "```", "<|tool_call|>",
    '{"name": "weather", "arguments": ', '{"name": "weather", "parameters": {', '{"city": "a"}', "null", "1.5e3", "tru",
    " ", "\n", "<think>", "</think>", "<", "text", "é😀", "<|python_start|>", '"arguments"', '"name"', "e\u0301",
]  # fmt: skip


@st.composite
def answers(draw, form):
    """Text around calls and halves of them."""
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.integers(0, 2))
        if kind == 0:
            parts.append(get(form).write(draw(st.sampled_from(["weather", "time_in", "other"])), draw(arguments)))
            if draw(st.booleans()):
                parts[-1] = parts[-1][: draw(st.integers(0, len(parts[-1])))]
        else:
            parts += draw(st.lists(st.sampled_from(FRAGMENTS), max_size=6))
    return "".join(parts)


@st.composite
def cuts(draw, text):
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("form", NAMES)
@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_chunks_change_nothing(form, data):
    text = data.draw(answers(form))
    reasoning = data.draw(st.sampled_from([None, "qwen3", "deepseek_r1"]))
    options = {"reasoning": get_reasoning(reasoning)} if reasoning and form != "harmony" else {}
    whole = at_once(form, text, **options)
    assert in_chunks(form, list(text), **options) == whole
    assert in_chunks(form, data.draw(cuts(text)), **options) == whole


@pytest.mark.parametrize("form", [name for name in NAMES if name != "harmony"])
@settings(derandomize=True, deadline=None, max_examples=40)
@given(text=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join))
def test_what_is_no_call_is_unchanged(form, text):
    content, reasoning, found = at_once(form, text)
    if not found:
        assert content == text and reasoning == ""


@pytest.mark.parametrize("form", NAMES)
@settings(derandomize=True, deadline=None, max_examples=30)
@given(values=arguments, other=arguments, text=st.text("ab <\n", max_size=6))
def test_a_call_that_is_written_is_read(form, values, other, text):
    if form in ("qwen3_coder",):  # bare text has no types where the schema names none
        values = {"city": "x\ny", "days": 4, "k_2": {"a": [1, None]}, "other": True}
    written = get(form).write("weather", values)
    assert calls(form, written) == [["weather", values]]
    if form not in ("pythonic", "llama3_json"):
        both = get(form).write("time_in", {"k_2": 1})
        content, _, found = at_once(form, text + written + "\n" + both)
        assert [json.loads(arguments) for _, arguments in found] == [values, {"k_2": 1}]
        assert content == (text if text.strip() else "")


@pytest.mark.parametrize("form", STREAMING)
def test_arguments_stream(form):
    """Of a long string, all but the last few characters are out as soon as they are in."""
    text = get(form).write("weather", {"city": "x" * 400})
    answer, seen = parser(form), ""
    start = text.index("xx")
    assert told(answer.feed(text[:start]))[2][0][0] == "weather"
    for at in range(start, start + 400):
        seen += "".join(piece.text for piece in answer.feed(text[at]))
        assert len(seen) == at - start + 1


@pytest.mark.parametrize("form", NAMES)
def test_text_is_not_held_back(form):
    answer = parser(form)
    assert told(answer.feed("A"))[0] == "A"
    for char in "b c < d [e] {f} ":
        answer.feed(char)
    assert told(answer.feed("x"))[0].endswith("x")


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [["f", {"a": 1}]]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', [["f", {}]]),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}', [["f", {}]]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [["f", {"a": 1}]]),
        ("hermes", '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g"}]</tool_call>', [["f", {}], ["g", {}]]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>', [["f", {"a": "x\ny"}]]),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', [["f", {"a": 1}]]),
        ("mistral", '[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g[CALL_ID]9xY[ARGS]{}', [["f", {"a": 1}], ["g", {}]]),
        ("llama3_json", '{"name": "weather", "parameters": {}}; {"name": "time_in"}', [["weather", {}], ["time_in", {}]]),  # noqa: E501
        ("llama3_json", '<|python_tag|>{"type": "function", "name": "weather", "parameters": {}}', [["weather", {}]]),
        ("pythonic", "[weather(city='Bo\\'s', days=-3), time_in()]", [["weather", {"city": "Bo's", "days": -3}], ["time_in", {}]]),  # noqa: E501
        ("pythonic", "[weather(a=[1, (2.5, None)], b={'c': true})]", [["weather", {"a": [1, [2.5, None]], "b": {"c": True}}]]),  # noqa: E501
        ("qwen3_coder", "<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>3</parameter></function>", [["weather", {"city": "12", "days": 3}]]),  # noqa: E501
        ("qwen3_coder", "<tool_call>\n<function=time_in>\n</function>\n</tool_call>", [["time_in", {}]]),
        ("granite", '<tool_call>[{"name": "f", "arguments": {}}]', [["f", {}]]),
        ("deepseek_v3", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', [["f", {"a": 1}], ["g", {}]]),  # noqa: E501
        ("harmony", '<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>', [["f", {"a": 1}]]),  # noqa: E501
    ],
)  # fmt: skip
def test_what_models_write(form, text, expected):
    assert calls(form, text) == expected
    assert at_once(form, text)[0] == ""


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "<tool_call>not JSON</tool_call>"),
        ("hermes", '<tool_call>{"name": "f", "colour": "red"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f f", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{"}'),
        ("hermes", '<tool_call>{"name":'),
        ("llama3_json", '{"name": "Ada", "parameters": {}}'),
        ("llama3_json", '{"answer": 42}'),
        ("llama3_json", ' said {"name": "weather", "parameters": {}}'),
        ("pythonic", "[1, 2]"),
        ("pythonic", "[weather('x')]"),
        ("pythonic", "[weather(a=__import__('os').system('id'))]"),
        ("pythonic", "[weather(a=f'{1}')]"),
        ("pythonic", "[weather(**{'a': 1})]"),
        ("pythonic", "[weather(a=1, a=2)]"),
        ("pythonic", "[weather(a=" + "[" * 80 + "]" * 80 + ")]"),
        ("mistral", "[TOOL_CALLS]no call"),
        ("qwen3_coder", "<tool_call>\n<function=weather"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>none"),
        ("harmony", "<|channel|>mind<|message|>x"),
        ("granite", "<|tool_call|>[]"),
    ],
)
def test_malformed_calls_are_text(form, text):
    assert at_once(form, text) == (text, "", [])
    assert in_chunks(form, list(text)) == (text, "", [])


def test_a_call_that_breaks_off_keeps_what_came_and_the_rest_is_text():
    content, _, found = at_once("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1, oh no}}</tool_call> bye')
    assert found == [["f", '{"a": 1, ']] and content == "oh no}}</tool_call> bye"
    assert at_once("hermes", 'x<tool_call>{"name": "f", "arguments": {"a": "b')[2] == [["f", '{"a": "b']]


def test_text_between_and_around_calls_stays_but_blanks_go():
    call = get("hermes").write("f", {})
    content, _, found = at_once("hermes", f"First\n{call}\n\n{call} then {call}\n")
    assert len(found) == 3 and content == "First\n then "


def test_only_so_many_calls():
    call = get("hermes").write("f", {"a": 1})
    assert len(calls("hermes", call * 3, max_calls=1)) == 1


def test_an_unknown_name_is_a_call_where_a_marker_says_so():
    assert calls("hermes", get("hermes").write("made_up", {})) == [["made_up", {}]]


def test_required_and_named_answers():
    text = '[{"name": "weather", "parameters": {"city": "x"}}, {"name": "time_in", "parameters": {}}]'
    assert calls(JSON_ARRAY, text) == [["weather", {"city": "x"}], ["time_in", {}]]
    assert calls(named_call("weather"), '\n{"city": "x"}') == [["weather", {"city": "x"}]]


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("kind", ["begin", "prefix", "open", "nested"])
@pytest.mark.security("A20", "A7")
def test_a_mebibyte_of_malice_costs_linear_time_and_bounded_memory(form, kind):
    begin = {"pythonic": "[weather(", "llama3_json": "<|python_tag|>"}.get(form) or get(form).write("weather", {})[:11]
    unit = {
        "begin": begin,
        "prefix": "<",
        "open": begin + '{"name": "weather", "id": "',
        "nested": begin + '{"name": "weather", "id": [[[[',
    }[kind]
    text = (unit * (1 + (1 << 19) // len(unit)))[: 1 << 19]
    answer = parser(form)
    started = time.perf_counter()
    pieces = [piece for at in range(0, len(text), 4096) for piece in answer.feed(text[at : at + 4096])]
    content, reasoning, found = told(pieces + answer.finish())
    assert time.perf_counter() - started < 3.0 * BUSY
    assert found or reasoning or content == text


def test_what_is_held_is_bounded():
    answer = parser("hermes")
    answer.feed('<tool_call>{"id": "')
    held = 0
    for _ in range(40):
        held += 4096 - len(told(answer.feed("x" * 4096))[0])
        assert held <= MAX_HELD + 20


def test_markers_that_overlap_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        Markers(["<a>", "x<a>y"])


def test_names():
    assert {"hermes", "llama3_json", "mistral", "openai", "qwen3_xml"} <= set(TOOL_NAMES)
    assert all(get(name) for name in TOOL_NAMES)
    with pytest.raises(ConfigError, match="hermes"):
        get("none such")
