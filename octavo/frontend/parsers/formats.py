"""How models write calls: a description for each format. To add one is to add an entry to `FORMATS`.

Sources are the models' chat templates and cards: NousResearch Hermes function calling, Llama 3.1 and 4 prompt formats,
Mistral's common tokenizer, Qwen3 and Qwen3-Coder, DeepSeek V3, R1 and V3.1, Granite 3, and OpenAI's harmony.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from octavo.frontend.parsers.calls import (
    Offered,
    read_arguments,
    read_deepseek,
    read_json_calls,
    read_json_calls_apart,
    read_mistral,
    read_qwen3,
)
from octavo.frontend.parsers.cursor import Cursor, Malformed, Markers, Steps
from octavo.frontend.parsers.harmony import read_harmony
from octavo.frontend.parsers.pythonic import read_pythonic

Reader = Callable[[Cursor, Offered], Steps[None]]
Arguments = dict[str, Any]


def _json_call(key: str = "arguments") -> Callable[[str, Arguments], str]:
    return lambda name, arguments: json.dumps({"name": name, key: arguments}, ensure_ascii=False)


@dataclass(frozen=True)
class ToolFormat:
    """One way of writing calls.

    Attributes:
        name: as `--tool-call-parser` has it.
        read: reads what follows a marker, up to the end marker.
        write: one call in this format, from a name and its arguments. Models that were not trained to call are shown
            it, and calls of earlier turns are given to them so.
        markers: what begins a call, anywhere in an answer.
        opening: characters that begin a call without a marker, as the first of an answer only.
        end: what ends a call, if the model writes it.
        kept: markers that `read` reads itself.
        words: further markers, which only `read` knows; all of them that are control tokens are kept in the text.
        known_only: only offered functions are called; of others the text is content.
        short_ids: templates of such models take ids of calls with nine letters and digits only.
        whole_answer: `read` reads an answer from its beginning, and reasoning with it.
        frame: what stands around a call's arguments, "NAME" being the function's name; None where a grammar for a
            part of an answer cannot keep it.
        signs: strings that a chat template of such a model has, all of one of the groups.
    """

    name: str
    read: Reader
    write: Callable[[str, Arguments], str]
    markers: tuple[str, ...] = ()
    opening: str = ""
    end: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    known_only: bool = False
    short_ids: bool = False
    whole_answer: bool = False
    frame: tuple[str, str] | None = None
    signs: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def begin_markers(self) -> Markers:
        return Markers(self.markers)

    @property
    def spellings(self) -> tuple[str, ...]:
        """All markers."""
        return self.markers + self.end + self.words


def read_tool_calls(cursor: Cursor, tool_format: ToolFormat, offered: Offered) -> Steps[None]:
    """An answer in which calls may stand."""
    if tool_format.opening:
        cursor.hold()
        try:
            if (yield from cursor.blanks()) not in tuple(tool_format.opening):
                raise Malformed
            yield from _read_one(cursor, tool_format, offered)
        except Malformed:
            cursor.release()
    while begin := (yield from cursor.until(tool_format.begin_markers, cursor.content)):
        cursor.hold(back=len(begin))
        if begin in tool_format.kept:
            cursor.at -= len(begin)
        try:
            yield from _read_one(cursor, tool_format, offered)
        except Malformed:
            cursor.release()


def _read_one(cursor: Cursor, tool_format: ToolFormat, offered: Offered) -> Steps[None]:
    yield from tool_format.read(cursor, offered)
    if tool_format.end:
        cursor.hold()
        yield from cursor.blanks()
        yield from cursor.expect(*tool_format.end)
        cursor.drop()


def _write_hermes(name: str, arguments: Arguments) -> str:
    return f"<tool_call>\n{_json_call()(name, arguments)}\n</tool_call>"


def _write_mistral(name: str, arguments: Arguments) -> str:
    return f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}"


def _write_qwen3_coder(name: str, arguments: Arguments) -> str:
    values = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in arguments.items()}
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def _write_deepseek(name: str, arguments: Arguments) -> str:
    body = f"function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments, ensure_ascii=False)}\n```"
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{body}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def _write_deepseek_v31(name: str, arguments: Arguments) -> str:
    body = f"{name}<｜tool▁sep｜>{json.dumps(arguments, ensure_ascii=False)}"
    return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{body}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def _write_pythonic(name: str, arguments: Arguments) -> str:
    return f"[{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"


def _write_granite(name: str, arguments: Arguments) -> str:
    return f"<|tool_call|>[{_json_call()(name, arguments)}]"


def _write_harmony(name: str, arguments: Arguments) -> str:
    body = json.dumps(arguments, ensure_ascii=False)
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{body}<|call|>"


_DEEPSEEK_WORDS = ("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
_HERMES_FRAME = ('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>")
_HARMONY_WORDS = ("<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")

# The order is that of detection: the first whose signs a template has.
FORMATS = (
    ToolFormat(
        "harmony",
        read_harmony,
        _write_harmony,
        markers=("<|start|>", "<|channel|>"),
        words=_HARMONY_WORDS,
        whole_answer=True,
        signs=(("<|channel|>", "<|message|>"),),
    ),
    ToolFormat(
        "deepseek_v3",
        read_deepseek,
        _write_deepseek,
        markers=("<｜tool▁calls▁begin｜>",),
        words=_DEEPSEEK_WORDS,
        signs=(("<｜tool▁calls▁begin｜>", "```json"),),
    ),
    ToolFormat(
        "deepseek_v31",
        read_deepseek,
        _write_deepseek_v31,
        markers=("<｜tool▁calls▁begin｜>",),
        words=_DEEPSEEK_WORDS,
        signs=(("<｜tool▁calls▁begin｜>",),),
    ),
    ToolFormat(
        "qwen3_coder",
        read_qwen3,
        _write_qwen3_coder,
        markers=("<tool_call>", "<function="),
        end=("</tool_call>",),
        kept=("<function=",),
        signs=(("<function=", "<parameter="),),
    ),
    ToolFormat(
        "mistral",
        read_mistral,
        _write_mistral,
        markers=("[TOOL_CALLS]",),
        words=("[ARGS]", "[CALL_ID]"),
        short_ids=True,
        signs=(("[TOOL_CALLS]",),),
    ),
    ToolFormat(
        "granite",
        read_json_calls,
        _write_granite,
        markers=("<|tool_call|>", "<tool_call>"),
        end=("</tool_call>",),
        signs=(("<|tool_call|>",),),
    ),
    ToolFormat(
        "pythonic",
        read_pythonic,
        _write_pythonic,
        markers=("<|python_start|>",),
        opening="[",
        end=("<|python_end|>",),
        known_only=True,
        signs=(("func_name1(",), ("func1(",)),
    ),
    ToolFormat(
        "llama3_json",
        read_json_calls_apart,
        _json_call("parameters"),
        markers=("<|python_tag|>",),
        opening="{",
        known_only=True,
        signs=(("<|python_tag|>",), ("Environment: ipython",)),
    ),
    ToolFormat(
        "qwen3",
        read_qwen3,
        _write_hermes,
        markers=("<tool_call>",),
        end=("</tool_call>",),
        frame=_HERMES_FRAME,
        signs=(("<tool_call>", "enable_thinking"),),
    ),
    ToolFormat(
        "hermes",
        read_json_calls,
        _write_hermes,
        markers=("<tool_call>",),
        end=("</tool_call>",),
        frame=_HERMES_FRAME,
        signs=(("<tool_call>",),),
    ),
)

# What constrained decoding writes for tool_choice "required".
JSON_ARRAY = ToolFormat("json_array", read_json_calls, _json_call("parameters"), opening="[{", known_only=True)


def named_call(name: str) -> ToolFormat:
    """The format of an answer that is one function's arguments and nothing else, as for a named tool_choice."""

    def read(cursor: Cursor, offered: Offered) -> Steps[None]:
        yield from read_arguments(cursor, name)

    return ToolFormat("named", read, lambda _, arguments: json.dumps(arguments, ensure_ascii=False), opening="{")
