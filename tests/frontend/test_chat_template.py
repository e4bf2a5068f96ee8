"""Rendering as transformers renders, and what is refused."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
import templates
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.errors import InvalidRequestError
from octavo.frontend.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Wetter für <Ort> & "mehr" 日本',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [user("hi there")],
    "system": [{"role": "system", "content": " Be  brief.\n"}, user("naïve 日本 😀 {{ 7 * 7 }} {% raw %}")],
    "turns": [user("a"), assistant("b "), user(" c\n"), assistant("d"), user("e")],
    "markup": [
        user("<b>1 < 2 && 3 > 2</b> 'quoted' \"double\" \\n"),
        assistant("<think>\nhm\n</think>\n\nyes"),
        user("ok"),
    ],
    "tools": [user("weather?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": '{"t": 21}'}],
    "empty": [user(""), assistant(""), user("x")],
}


def oracle(source: str, messages: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
    options = {"add_generation_prompt": True, **options}
    rendered, _ = render_jinja_template([messages], tools, chat_template=source, **SPECIAL, **options)
    return rendered[0]


@pytest.mark.parametrize("name", templates.ALL)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_that_of_transformers(name: str, chat: str, tools: Any, prompt: bool) -> None:
    source = templates.ALL[name]
    template = ChatTemplate(source, SPECIAL)
    try:
        expected = oracle(source, CHATS[chat], tools, add_generation_prompt=prompt)
    except Exception as error:
        with pytest.raises(InvalidRequestError, match=str(error).split("/")[0][:30]):
            template.render(CHATS[chat], tools, add_generation_prompt=prompt)
        return
    assert template.render(CHATS[chat], tools, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", ["chatml", "llama2", "llama3_tools", "parts"])
@pytest.mark.parametrize("ending", ["Sure, here", "Sure, ", "\n Sure\n\n", "b"])
def test_continuing_the_last_message_is_that_of_transformers(name: str, ending: str) -> None:
    messages = [user("a"), assistant("b"), user("c"), assistant(ending)]
    source = templates.ALL[name]
    expected = oracle(source, messages, add_generation_prompt=False, continue_final_message=True)
    got = ChatTemplate(source, SPECIAL).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert got == expected


def test_continuing_needs_a_message_that_is_shown() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    with pytest.raises(InvalidRequestError, match="leaves out the last message"):
        template.render([user("a"), assistant("b")], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        template.render([user("a")], add_generation_prompt=True, continue_final_message=True)


def test_template_variables_reach_the_template() -> None:
    template = ChatTemplate(templates.QWEN3, SPECIAL)
    assert template.render([user("x")], kwargs={"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")
    expected = oracle(templates.LLAMA3_TOOLS, [user("x")], date_string="1 May 2026")
    assert (
        ChatTemplate(templates.LLAMA3_TOOLS, SPECIAL).render([user("x")], kwargs={"date_string": "1 May 2026"})
        == expected
    )


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "tokenize", "chat_template", "add_generation_prompt", "bos_token", "range", "_x", "a b", "",
     "raise_exception", "namespace"],
)  # fmt: skip
def test_reserved_names_cannot_be_set(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(templates.CHATML).render([user("x")], kwargs={name: 1})
    assert caught.value.param == "chat_template_kwargs"


def test_too_many_variables_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="65 entries"):
        ChatTemplate(templates.CHATML).render([user("x")], kwargs={f"v{i}": i for i in range(65)})


def test_parts_become_a_string_where_the_template_takes_strings() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    joined = ChatTemplate(templates.CHATML).render([user("one\ntwo")])
    assert ChatTemplate(templates.CHATML).render([{"role": "user", "content": parts}]) == joined


def test_parts_stay_parts_where_the_template_takes_them() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    got = ChatTemplate(templates.PARTS, SPECIAL).render([{"role": "user", "content": parts}])
    assert got == oracle(templates.PARTS, [{"role": "user", "content": parts}])
    assert "onetwo" in got


def test_a_string_becomes_a_part_where_the_template_takes_parts_only() -> None:
    assert ChatTemplate(templates.PARTS_ONLY).render([user("one"), assistant("")]) == "user: one;assistant: ;"


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, {"type": "text", "text": 3}, 3, None]
)
def test_parts_that_are_not_text_are_refused(part: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(templates.CHATML).render([user("a"), {"role": "user", "content": [part]}])
    assert caught.value.param == "messages[1].content[0]"


def test_missing_content_is_empty() -> None:
    template = ChatTemplate(templates.CHATML)
    expected = template.render([user("a"), assistant("")])
    assert template.render([user("a"), assistant(None)]) == expected  # type: ignore[arg-type]
    assert template.render([user("a"), {"role": "assistant"}]) == expected


@pytest.mark.parametrize("arguments", ['{"city": "Zürich", "days": 3}', {"city": "Zürich", "days": 3}])
def test_tool_arguments_as_text_are_read_for_the_template(arguments: Any) -> None:
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    messages = [user("w?"), assistant("", tool_calls=[call])]
    assert ChatTemplate(templates.LLAMA3_TOOLS, SPECIAL).render(messages) == oracle(
        templates.LLAMA3_TOOLS, [user("w?"), assistant("", tool_calls=[CALL])]
    )
    assert json.loads(call["function"]["arguments"]) if isinstance(arguments, str) else arguments  # not changed


def test_tool_arguments_that_are_no_json_are_shown_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": "{broken"}}
    assert "{broken" in ChatTemplate(templates.QWEN3).render([user("x"), assistant("", tool_calls=[call])])


@pytest.mark.parametrize(
    "messages",
    [[], "hello", None, [1], [{"content": "x"}], [{"role": 3, "content": "x"}], [{"role": "", "content": "x"}],
     [{"role": "user", "content": 3}], [{"role": "user", "content": {"a": 1}}]],
)  # fmt: skip
def test_messages_of_the_wrong_shape_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(templates.CHATML).render(messages)
    assert (caught.value.param or "").startswith("messages")
    assert caught.value.fix


def test_values_that_are_no_json_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="cannot take a object"):
        ChatTemplate(templates.CHATML).render([{**user("x"), "extra": object()}])


def test_a_refusal_carries_the_templates_own_words() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        ChatTemplate(templates.LLAMA2, SPECIAL).render([assistant("a")])
    assert caught.value.status == 400
    assert caught.value.code == "chat_template_error"


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ x", "{% for a in b %}", "{{ x | nosuchfilter }}", "{% nosuchtag %}"]
)
def test_a_template_that_does_not_compile_says_where(source: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot be used: .*\(line 1\)"):
        ChatTemplate(source).render([user("x")])


def test_an_undefined_value_used_is_an_error_not_a_crash() -> None:
    for source in (
        "{{ nothing.at.all }}",
        "{{ messages[0].content + 3 }}",
        "{{ 1 / 0 }}",
        "{% for x in 3 %}{% endfor %}",
    ):
        with pytest.raises(InvalidRequestError, match="refuses"):
            ChatTemplate(source).render([user("x")])


def test_the_time_is_now() -> None:
    got = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render([user("x")])
    assert datetime.strptime(got, "%Y-%m-%d").year >= 2026


def test_what_the_template_is_given_cannot_be_changed() -> None:
    messages = [{**user("x"), "list": [1]}]
    for source in ("{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}", "{{ messages[0].list.pop() }}"):
        with pytest.raises(InvalidRequestError, match=r"unsafe|not safely"):
            ChatTemplate(source).render(messages)
    assert messages == [{**user("x"), "list": [1]}]
