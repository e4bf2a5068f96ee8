"""`ChatTemplate`: conversations to text through the model's own Jinja template, bounded and sandboxed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from jinja2.exceptions import TemplateSyntaxError

from octavo.errors import InvalidRequestError
from octavo.frontend.template_sandbox import ChatEnvironment, TemplateLimitError, limited

_MAX_SOURCE_CHARS = 256 * 1024
_MAX_KWARGS = 64
_MIN_OUTPUT_CHARS = 1 << 20  # an output may be this long, and longer by what it is made from
_RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"}
_RESERVED |= {"chat_template", "conversation", "raise_exception", "strftime_now", "namespace", "dict", "range"}
_RESERVED |= {"loop", "self", "caller", "varargs", "kwargs"}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_CONTINUE = "\ufddf"  # a noncharacter: no text has it

Mark = Callable[[str], str]
_PROBE = "octavoprobe"
_environment = ChatEnvironment()


class ChatTemplate:
    """A chat template, compiled once.

    Args:
        source: Jinja.
        special_tokens: variables a template expects, as `bos_token`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None):
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._hopeless: InvalidRequestError | None = None

    @cached_property
    def _template(self) -> jinja2.Template:
        if len(self.source) > _MAX_SOURCE_CHARS:
            raise _unusable(f"it has {len(self.source)} characters, more than {_MAX_SOURCE_CHARS}")
        try:
            with limited(_MIN_OUTPUT_CHARS):
                return _environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise _unusable(f"{error.message} (line {error.lineno})") from error
        except Exception as error:  # Python's own compiler refuses some nesting
            raise _unusable(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _takes(self) -> tuple[bool, bool]:
        """Whether the template writes out content that is a string, and content that is a list of parts.

        Found by asking it. A template that cannot render the probe alone counts as one for strings; one that exceeds
        its bounds on so little is not asked again.
        """
        word = _PROBE
        shapes: list[Any] = [word, [{"type": "text", "text": word}]]
        printed = []
        for content in shapes:
            try:
                text = self._run({"messages": [{"role": "user", "content": content}]}, 100)
            except InvalidRequestError as error:
                if isinstance(error.__cause__, TemplateLimitError | RecursionError):
                    self._hopeless = error
                    break
                text = ""
            printed.append(word in text and f"'{word}'" not in text and f'"{word}"' not in text)
        strings, parts = printed if len(printed) == len(shapes) else (True, False)
        return strings or not parts, parts

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template tells the model of tools. Found by asking it."""
        tool = {"type": "function", "function": {"name": _PROBE, "description": "", "parameters": {"type": "object"}}}
        return _PROBE in self._probe({"messages": [{"role": "user", "content": "x"}], "tools": [tool]})

    @cached_property
    def _takes_argument_text(self) -> bool:
        """Whether a call's arguments must be JSON text: as an object the template fails on them or shows Python's."""

        def shows(arguments: Any) -> bool:
            call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": arguments}}
            chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
            text = self._probe({"messages": chat})
            return _PROBE in text and f"'{_PROBE}'" not in text

        return not shows({_PROBE: "x"}) and shows(json.dumps({_PROBE: "x"}))

    def _probe(self, variables: dict[str, Any]) -> str:
        """What the template makes of them; "" if it fails."""
        try:
            return self._run({"tools": None, "add_generation_prompt": False, "documents": None} | variables, 1000)
        except InvalidRequestError:
            return ""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        mark: Mark | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: dicts with `role` and `content`, oldest first. Content is a string or a list of text parts;
                parts are joined by newlines for templates that expect a string.
            tools: function descriptions, as OpenAI's `tools`.
            add_generation_prompt: end with the words that begin an answer.
            continue_final_message: end inside the last message, so that the answer goes on from it.
            kwargs: further variables for the template.
            mark: applied to every string that comes with the request but names (roles, keys), before rendering.

        Raises:
            InvalidRequestError: the template refuses the conversation, fails, or exceeds its bounds; a message has
                content that is not text; a name in kwargs is reserved.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other.",
                fix="Set add_generation_prompt to false.",
                param="add_generation_prompt",
            )
        strings, parts = self._takes
        if self._hopeless is not None:
            raise self._hopeless.with_traceback(None)
        chat = [_message(message, index, strings, parts) for index, message in enumerate(_checked(messages))]
        for message in chat:
            calls = message.get("tool_calls")
            if isinstance(calls, list | tuple) and not self._takes_argument_text:
                message["tool_calls"] = [_tool_call(call) for call in calls]
        values = _Copier(mark)
        variables = {
            **_check_kwargs(kwargs or {}),
            "messages": chat,
            "tools": list(tools) if tools else None,
        }
        variables = {name: values.copy(value) for name, value in variables.items()}
        if continue_final_message:
            _append_mark(variables["messages"][-1])
        variables = {"documents": None} | variables | {"add_generation_prompt": add_generation_prompt}
        text = self._run(variables, values.num_chars)
        return _cut_at_mark(text) if continue_final_message else text

    def _run(self, variables: Mapping[str, Any], input_chars: int) -> str:
        try:
            with limited(_MIN_OUTPUT_CHARS + 8 * input_chars):
                return self._template.render(self._special_tokens | dict(variables))
        except InvalidRequestError:
            raise
        except RecursionError as error:
            raise _refused("it calls itself without end") from error
        except jinja2.TemplateError as error:
            raise _refused(error.message or type(error).__name__) from error
        except Exception as error:  # a template can raise what any expression can
            raise _refused(f"{type(error).__name__}: {error}") from error


class _Copier:
    """Copies JSON values, so that a template sees plain types only and can change nothing; counts their text."""

    def __init__(self, mark: Mark | None):
        self._mark = mark
        self.num_chars = 0

    def copy(self, value: Any, name: bool = False) -> Any:
        """Raises InvalidRequestError: the value is not JSON."""
        if isinstance(value, str):
            self.num_chars += len(value)
            unmarked = self._mark is None or (name and _PLAIN_NAME.fullmatch(value))
            return str(value) if unmarked else self._mark(value)  # type: ignore[misc]  # not None here
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self.copy(key, name=True): self.copy(item, name=key == "role") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item) for item in value]
        raise InvalidRequestError(
            f"The chat template cannot take a {type(value).__name__}.",
            fix="Use JSON values: text, numbers, lists and objects.",
            param="messages",
        )


def user_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)


def _checked(messages: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequestError(
            "messages must be a list with at least one message.",
            fix='Send [{"role": "user", "content": "..."}].',
            param="messages",
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not message["role"]:
            raise InvalidRequestError(
                f"Message {index} has no role.",
                fix='Each message is an object like {"role": "user", "content": "..."}.',
                param=f"messages[{index}].role",
            )
    return messages


def check_messages(messages: Any) -> None:
    """Check roles and contents, for what reads messages before a template does. Raises as `ChatTemplate.render`."""
    for index, message in enumerate(_checked(messages)):
        _message(message, index, strings=True, parts=True)


def _message(message: Mapping[str, Any], index: int, strings: bool, parts: bool) -> dict[str, Any]:
    """The message in the shape the template takes."""
    content = message.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list | tuple):
        texts = [_part_text(part, f"messages[{index}].content[{rank}]") for rank, part in enumerate(content)]
        content = [{"type": "text", "text": text} for text in texts] if parts else "\n".join(texts)
    elif not isinstance(content, str):
        raise InvalidRequestError(
            f"The content of message {index} is a {type(content).__name__}.",
            fix="Send text, or a list of text parts.",
            param=f"messages[{index}].content",
        )
    if isinstance(content, str) and not strings:
        content = [{"type": "text", "text": content}] if content else []
    return {**message, "content": content}


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InvalidRequestError(
        f"A content part of type {kind!r} cannot be read by this model.",
        fix='It takes text only: {"type": "text", "text": "..."}.',
        param=where,
    )


def _tool_call(call: Any) -> Any:
    """Arguments arrive as JSON text, as the API has them; most templates expect the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = function["arguments"]
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return call  # a model's own slip: the template shows it as it is
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


def _check_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if len(kwargs) > _MAX_KWARGS:
        raise InvalidRequestError(
            f"chat_template_kwargs has {len(kwargs)} entries.",
            fix=f"At most {_MAX_KWARGS} are taken.",
            param="chat_template_kwargs",
        )
    for name in kwargs:
        if name in _RESERVED or not _PLAIN_NAME.fullmatch(str(name)) or str(name).startswith("_") or "_token" in name:
            raise InvalidRequestError(
                f"chat_template_kwargs cannot set {name!r}.",
                fix="Use variables of the template's own, as enable_thinking.",
                param="chat_template_kwargs",
            )
    return dict(kwargs)


def _append_mark(message: dict[str, Any]) -> None:
    """Mark the end of the last message; the space tells whether the template trims content."""
    content = message["content"]
    if isinstance(content, list) and content:
        content[-1]["text"] += _CONTINUE + " "
    elif isinstance(content, str):
        message["content"] = content + _CONTINUE + " "
    else:
        raise _refused("the last message has no text to continue")


def _cut_at_mark(text: str) -> str:
    end = text.rfind(_CONTINUE)
    if end < 0:
        raise _refused("it leaves out the last message, so there is nothing to continue")
    before = text[:end].replace(_CONTINUE, "")
    return before if text[end + 1 : end + 2] == " " else before.rstrip()


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The model's chat template refuses this conversation: {why}.".replace("..", "."),
        fix="Change the messages to what the model was trained on, or give the server another --chat-template.",
        param="messages",
        code="chat_template_error",
    )


def _unusable(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The model's chat template cannot be used: {why}.".replace("..", "."),
        fix="Give the server a working --chat-template, or use /v1/completions.",
        param="messages",
        code="chat_template_error",
    )
