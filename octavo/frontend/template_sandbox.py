"""The Jinja sandbox that chat templates run in: no way out, and no way to run on or to fill memory.

A template comes with a model file, so it is not trusted. Jinja's immutable sandbox keeps it from Python's internals
and from changing what it is given; on top of it every loop turn, call, filter and printed text is charged to a
budget, and operations that could make a large value at once are checked before they run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_MIN_STEPS = 500_000  # a step is about a microsecond, or a few made characters
_MAX_SECONDS = 2.0
_MAX_NODES = 200_000  # values inside one list or dict, however deep
_MAX_INT_ARGUMENT = 1_000_000  # widths, counts
_MAX_INT_BITS = 4096
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0]*(\d{5,}|\*|\d*\.(\d{5,}|\*))")
_WIDE_BRACES = re.compile(r"\{[^{}]*(\d{5,}|\{)")
_FORBIDDEN_METHODS = frozenset({"expandtabs", "translate", "maketrans", "encode"})
_REMOVED_GLOBALS = ("lipsum", "cycler", "joiner")
_REMOVED_FILTERS = ("urlize", "random", "pprint", "xmlattr", "filesizeformat", "wordwrap")


class TemplateLimitError(TemplateError):
    """The template asked for more than a rendering may use."""


class Budget:
    """What one rendering may still use.

    Args:
        max_chars: of printed text, inside macros and captured blocks too, and of any one value.
    """

    __slots__ = ("_chars", "_deadline", "_next_look", "_steps", "max_chars")

    def __init__(self, max_chars: int):
        self.max_chars = self._chars = max_chars
        self._steps = self._next_look = _MIN_STEPS + 2 * max_chars
        self._deadline = time.monotonic() + _MAX_SECONDS

    def step(self, cost: int = 1) -> None:
        """Charge work."""
        self._steps -= cost
        if self._steps < 0:
            raise TemplateLimitError("the template takes too many steps")
        if self._steps < self._next_look:
            self._next_look = self._steps - 250
            if time.monotonic() > self._deadline:
                raise TemplateLimitError(f"the template takes more than {_MAX_SECONDS:g} seconds")

    def printed(self, num_chars: int) -> None:
        """Charge printed text."""
        self._chars -= num_chars
        if self._chars < 0:
            raise TemplateLimitError(f"the template writes more than {self.max_chars} characters")

    def made(self, num_chars: int) -> None:
        """Check and charge a text of this size, best before it is made."""
        if num_chars > self.max_chars:
            raise TemplateLimitError(f"the template makes a value of {num_chars} characters")
        self.step(1 + num_chars // 8)

    def container(self, value: Any) -> None:
        """Check and charge a container by all that is in it, however deep.

        What is in it twice counts twice: writing it out or comparing it takes that long.
        """
        nodes, chars, left = 0, 0, [value]
        while left:
            item = left.pop()
            if isinstance(item, str):
                chars += len(item)
            elif isinstance(item, list | tuple):
                nodes += len(item)
                left.extend(item)
            elif isinstance(item, dict):
                nodes += 2 * len(item)
                left.extend(item)
                left.extend(item.values())
            if nodes > _MAX_NODES or chars > self.max_chars:
                raise TemplateLimitError("the template makes a list or dict that is too large")
        self.step(1 + nodes)


_budget: ContextVar[Budget] = ContextVar("octavo_template_budget")
_current = _budget.get


@contextmanager
def limited(max_chars: int) -> Iterator[None]:
    """Give what is compiled or rendered inside a fresh budget; nothing works without one."""
    token = _budget.set(Budget(max_chars))
    try:
        yield
    finally:
        _budget.reset(token)


def _size(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


class _Counted:
    """An iterable whose turns are charged; sized, so that `loop.length` costs nothing, if what it wraps is."""

    __slots__ = ("_items",)

    def __init__(self, items: Any):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return _counted(self._items)


def _counted(items: Any) -> Iterator[Any]:
    budget = _current()
    for item in items:
        budget.step()
        yield item


def _loop_items(items: Any) -> Any:
    """What a `for` loops over, with its turns charged; not iterable raises where Jinja would."""
    if hasattr(items, "__len__"):
        return _Counted(items)
    return _counted(items) if hasattr(items, "__iter__") else items


def _concat(parts: list[Any]) -> str:
    """`a ~ b`."""
    texts = [str(part) for part in parts]
    _current().made(sum(map(len, texts)))
    return "".join(texts)


def _made(value: Any) -> Any:
    """A list, tuple or dict as the template writes it."""
    _current().container(value)
    return value


@jinja2.pass_context  # keeps Jinja from folding it into a constant, which would not be charged
def _literal(context: Any, text: str) -> str:
    return text


def _finalize(value: Any) -> Any:
    """Charge what `{{ }}` prints; None prints as "None", as in Jinja."""
    text = value if isinstance(value, str) else str(value)
    _current().printed(len(text))
    return text


def _guarded(filter_: Callable[..., Any], subject_index: int) -> Callable[..., Any]:
    """A filter that is charged for the size of its subject and refuses giant numbers as arguments."""

    @wraps(filter_)  # copies the mark that says whether the context comes first
    def guarded(*args: Any, **kwargs: Any) -> Any:
        subject = args[subject_index] if len(args) > subject_index else None
        rest = args[subject_index + 1 :]
        _check_arguments((*rest, *kwargs.values()))
        _current().step(1 + _size(subject) // 8)
        if hasattr(subject, "__next__"):
            args = (*args[:subject_index], _counted(subject), *rest)
        result = filter_(*args, **kwargs)
        _check_result(result)
        return result

    return guarded


def _check_arguments(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_INT_ARGUMENT:
            raise TemplateLimitError(f"the template gives {value} where a small number is expected")


def _check_result(value: Any) -> None:
    if isinstance(value, str):
        _current().made(len(value))
    elif isinstance(value, list | tuple | dict):
        _current().container(value)


def _check_percent(text: str, values: Any) -> None:
    """`text % values`."""
    if _WIDE_PERCENT.search(text):
        raise TemplateLimitError("the template formats with a width that is computed or large")
    _current().container(values if isinstance(values, tuple | dict) else (values,))
    sizes = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
    _current().made(len(text) + (text.count("%") + 1) * max(map(_size, sizes), default=0))


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    items = list(_counted(value))
    _current().made(sum(map(_size, items)) + len(str(d)) * len(items))
    return str(filters.sync_do_join(context, items, str(d), attribute))


@jinja2.pass_eval_context
def _replace(context: Any, text: Any, old: Any, new: Any, count: int | None = None) -> str:
    _check_replace(str(text), str(old), str(new))
    return str(filters.do_replace(context, str(text), str(old), str(new), count))


def _check_replace(text: str, old: str, new: str) -> None:
    _current().made(len(text) + text.count(old) * len(new))


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(text)
    _current().made(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
    return filters.do_indent(text, width, first, blank)


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    _check_percent(str(text), kwargs or args)
    return str(filters.do_format(str(text), *args, **kwargs))


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' chat templates expect it: Unicode as it is, no escaping for HTML."""
    if indent is not None and indent > 16:
        raise TemplateLimitError("tojson indents by at most 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)  # local time, as transformers gives it


class _Namespace(Namespace):
    """`namespace()`, which keeps no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        Namespace.__init__(self, *rest, **kwargs)
        for name in dict(*rest, **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # not its values: it may hold itself


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace keeps no name like {name!r}")


class _Dict:
    """`dict()`, without the type's own methods."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class GenerationTag(Extension):
    """`{% generation %}` marks an assistant's words for training; for rendering it is just its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The one environment all chat templates are compiled in."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=_finalize
        )
        for name in _REMOVED_GLOBALS:
            self.globals.pop(name, None)
        for name in _REMOVED_FILTERS:
            self.filters.pop(name, None)
        self.filters.update(tojson=tojson, join=_join, replace=_replace, indent=_indent, format=_format)
        self.filters = {
            name: _guarded(filter_, int(hasattr(filter_, "jinja_pass_arg"))) for name, filter_ in self.filters.items()
        }
        self.filters |= {
            "octavo_loop": _loop_items,
            "octavo_concat": _concat,
            "octavo_text": _literal,
            "octavo_made": _made,
        }
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_Dict()
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _charged(super()._parse(source, name, filename))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes."""
        _current().step(2)
        if isinstance(__obj, LoopContext) and args:  # a recursive loop's next level
            args = (_loop_items(args[0]), *args[1:])
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if __obj.__name__ == "join" and args:
                args = (list(_counted(args[0])),)
            _check_string_method(__obj.__name__, owner, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        _check_result(result)
        return result

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format`, as the sandbox wraps it, with its widths checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__

        def checked(*args: Any, **kwargs: Any) -> str:
            if _WIDE_BRACES.search(text):
                raise TemplateLimitError("the template formats with a width that is computed or large")
            _current().container([*args, *kwargs.values()])
            longest = max(map(_size, (*args, *kwargs.values())), default=0)
            _current().made(len(text) + (text.count("{") + 1) * longest)
            return wrapped(*args, **kwargs)

        return checked

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, refused where the result would be large."""
        budget = _current()
        budget.step()
        if operator == "+" and hasattr(left, "__len__"):
            budget.made(len(left) + _size(right))
        elif operator == "*":
            _check_product(budget, left, right)
        elif operator == "**" and (abs(right) > 64 or _bits(left) * abs(right) > _MAX_INT_BITS):
            raise TemplateLimitError(f"the template computes {left} ** {right}")
        elif operator == "%" and isinstance(left, str):
            _check_percent(left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, list | tuple):
            budget.container(result)
        return result


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    for sequence, times in ((left, right), (right, left)):
        if hasattr(sequence, "__len__") and isinstance(times, int):
            budget.made(len(sequence) * max(0, times))
    if _bits(left) + _bits(right) > _MAX_INT_BITS:
        raise TemplateLimitError("the template computes a giant number")


def _check_string_method(name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A call of a method of `text`; `format` is checked in `wrap_str_format`."""
    budget = _current()
    budget.step(1 + len(text) // 8)
    if name in _FORBIDDEN_METHODS:
        raise TemplateLimitError(f"the template calls {name}(), which chat templates may not")
    _check_arguments((*args, *kwargs.values()))
    if name == "join" and args:
        budget.made(sum(_size(item) + len(text) for item in args[0]))
    if name == "replace" and len(args) >= 2:
        _check_replace(text, str(args[0]), str(args[1]))


def _charged(template: nodes.Template) -> nodes.Template:
    """Rewrite the syntax tree so that what makes values or repeats passes through the functions that charge."""
    _rewrite(template)
    return template


def _rewrite(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _rewrite(value)
            setattr(node, field, _wrapped(value))
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, nodes.Node):
                    _rewrite(item)
            value[:] = [_wrapped(item) for item in value]
    if isinstance(node, nodes.For):
        node.iter = _filter("octavo_loop", node.iter)


def _wrapped(node: Any) -> Any:
    if isinstance(node, nodes.Concat):
        return _filter("octavo_concat", nodes.List(list(node.nodes), lineno=node.lineno))
    if isinstance(node, nodes.TemplateData):
        return _filter("octavo_text", nodes.Const(node.data, lineno=node.lineno))
    if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filter("octavo_made", node)
    return node


def _filter(name: str, subject: Any) -> nodes.Filter:
    return nodes.Filter(subject, name, [], [], None, None, lineno=subject.lineno)
