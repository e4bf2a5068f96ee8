"""Tools reach the model: through its template, or in words where the template knows none."""

from __future__ import annotations

import json

import pytest

from octavo.frontend.chat_template import ChatTemplate
from octavo.frontend.parsers import detect_reasoning, detect_tools, get
from octavo.frontend.parsers.prompting import in_words, needs_words

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
USER = {"role": "user", "content": "hi"}
HISTORY = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "rain"}]},
]


def test_a_template_is_asked_whether_it_takes_tools():
    assert not ChatTemplate(PLAIN).takes_tools
    assert ChatTemplate("{% for t in tools %}{{ t | tojson }}{% endfor %}" + PLAIN).takes_tools
    assert not ChatTemplate("{{ raise_exception('no') }}").takes_tools


def test_the_description_goes_into_the_system_message():
    words = in_words([{"role": "system", "content": "Be brief."}, USER], TOOLS, get("hermes"))
    assert [m["role"] for m in words] == ["system", "user"]
    assert words[0]["content"].startswith("Be brief.\n\n") and '"name": "weather"' in words[0]["content"]
    assert "<tool_call>" in words[0]["content"]
    made = in_words([USER], TOOLS, get("llama3_json"))
    assert made[0]["role"] == "system" and '"parameters": {"PARAMETER"' in made[0]["content"]


def test_calls_and_results_become_text_that_alternates():
    words = in_words(HISTORY, None, get("hermes"))
    assert [m["role"] for m in words] == ["user", "assistant", "user"]
    assert words[1]["content"].count('<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}') == 2
    assert "tool_calls" not in words[1]
    assert words[2]["content"].count("<tool_response>") == 2 and "rain" in words[2]["content"]


def test_a_conversation_without_tools_stays_as_it_is():
    assert not needs_words([USER], None) and needs_words(HISTORY, None) and needs_words([USER], TOOLS)


@pytest.mark.parametrize(
    ("shows", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", '{"city": "Bern"}'),
        ("{{ '```json' + '\n' + c.function.arguments }}", '```json\n{"city": "Bern"}'),
        ("{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}", "city=Bern"),
        ("{{ c.function.arguments }}", '{"city": "Bern"}'),
    ],
)
def test_arguments_are_objects_or_text_as_the_template_wants(shows, expected):
    source = "{% for m in messages %}{% for c in m.tool_calls or [] %}" + shows + "{% endfor %}{% endfor %}"
    assert ChatTemplate(source).render(HISTORY[:2]) == expected * 2


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("<tool_call> enable_thinking </think>", "qwen3", "qwen3"),
        ("<tool_call>", "hermes", None),
        ("<tool_call><function=x><parameter=y>", "qwen3_coder", None),
        ("[TOOL_CALLS] [THINK] [/THINK]", "mistral", "mistral"),
        ("Environment: ipython", "llama3_json", None),
        ("<｜tool▁calls▁begin｜>```json <｜Assistant｜> </think>", "deepseek_v3", "deepseek_r1"),
        ("<｜tool▁calls▁begin｜>", "deepseek_v31", None),
        ("<|tool_call|>", "granite", None),
        ("[func_name1(params_name1=params_value1)]", "pythonic", None),
        ("<|channel|>analysis<|message|>", "harmony", "harmony"),
        (PLAIN, None, None),
    ],
)
def test_formats_are_known_by_the_template(template, tools, reasoning):
    found, thinks = detect_tools(template), detect_reasoning(template)
    assert (found and found.name) == tools and (thinks and thinks.name) == reasoning


def test_what_is_written_is_json_where_the_format_is():
    assert json.loads(get("llama3_json").write("f", {"a": 1})) == {"name": "f", "parameters": {"a": 1}}
