"""Reasoning stands before the answer; the prompt may have begun it, or ended it."""

from __future__ import annotations

import pytest

from octavo.frontend.parsers import get_reasoning
from tests.frontend_parsers.test_formats import at_once, in_chunks

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "x"}}</tool_call>'


@pytest.mark.parametrize(
    ("name", "tail", "text", "content", "reasoning"),
    [
        ("qwen3", "", "<think>\nhm\n</think>\n\nYes <think>", "Yes <think>", "hm\n"),
        ("qwen3", "", "Yes <think>no</think>", "Yes <think>no</think>", ""),
        ("qwen3", "<|assistant|>\n<think>\n", "hm</think>Yes", "Yes", "hm"),
        ("qwen3", "<think>\n\n</think>\n\n", " Yes", " Yes", ""),
        ("qwen3", "", "<think>never ends </thin", "", "never ends </thin"),
        ("qwen3", "", "<thinking is hard", "<thinking is hard", ""),
        ("qwen3", "", "  \n", "  \n", ""),
        ("deepseek_r1", "", "hm</think>Yes", "Yes", "hm"),
        ("deepseek_r1", "", "<think>hm</think>\nYes", "Yes", "hm"),
        ("deepseek_r1", "<｜Assistant｜></think>", "Yes", "Yes", ""),
        ("granite", "", "Here is my thought process: a b Here is my response: c", "c", "a b "),
        ("mistral", "", "[THINK]a[/THINK]b", "b", "a"),
    ],
)
def test_reasoning_and_answer(name, tail, text, content, reasoning):
    options = {"reasoning": get_reasoning(name), "prompt_tail": tail}
    assert at_once("hermes", text, **options) == (content, reasoning, [])
    assert in_chunks("hermes", list(text), **options) == (content, reasoning, [])


def test_calls_follow_reasoning_and_do_not_count_inside():
    text = f"<think>maybe {CALL}</think>\n{CALL}"
    content, reasoning, calls = at_once("hermes", text, reasoning=get_reasoning("qwen3"))
    assert (content, reasoning) == ("", f"maybe {CALL}") and calls == [["weather", '{"city": "x"}']]


def test_harmony_channels():
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes"
    )
    assert at_once("harmony", text) == ("Wait.Yes", "hm", [])


def test_reasoning_is_out_as_soon_as_it_is_in():
    from octavo.frontend.parsers import AnswerParser

    parser = AnswerParser(None, reasoning=get_reasoning("qwen3"))
    assert parser.feed("<think>") == [] and parser.feed("a") == [("reasoning", "a")]
    assert parser.feed("</think>") == [] and parser.feed("b") == [("content", "b")]
