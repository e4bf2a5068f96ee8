"""A template can neither get out, nor run on, nor fill memory. Templates come with model files."""

from __future__ import annotations

import resource
import time

import pytest

from octavo.errors import InvalidRequestError
from octavo.frontend.chat_template import ChatTemplate

USER = [{"role": "user", "content": "x", "list": [1, 2]}]
NS = "{% set ns = namespace(s=START) %}{% for i in range(70) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s OUT }}"


def grow(start: str, step: str, out: str = "") -> str:
    return NS.replace("START", start).replace("STEP", step).replace("OUT", out)


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['os'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ messages|map(attribute='__class__')|list|first|attr('mro') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__.__mro__}'|string).format(1) }}",
    "{{ (messages|first).items.__self__ }}",
    "{{ dict.__base__ }}{{ dict.mro() }}",
    "{% set ns = namespace(_x=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as o %}",
    "{% extends 'x' %}",
    "{{ range.__init__.__self__ }}",
    "{{ joiner.__init__ }}",
    "{{ loop.__class__ }}{% for x in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._environment.globals }}{{ m.__init__.__globals__ }}",
]

BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [1] * 10**9 }}",
    "{{ (1,) * 10**9 }}",
    "{{ 2 ** (10**9) }}",
    "{{ (10 ** 60) ** 60 ** 60 }}",
    grow("3", "ns.s * ns.s"),
    grow("'ab'", "ns.s ~ ns.s", "|length"),
    grow("'ab'", "ns.s + ns.s", "|length"),
    grow("'ab'", "ns.s * 2", "|length"),
    grow("'ab'", "[ns.s, ns.s]|join", "|length"),
    grow("'ab'", "ns.s|replace('a', 'aa')|replace('b', 'bb')", "|length"),
    grow("'ab'", "ns.s.replace('a', 'aa').replace('b', 'bb')", "|length"),
    grow("'ab'", "'%s%s' % (ns.s, ns.s)", "|length"),
    grow("'ab'", "'{0}{0}'.format(ns.s)", "|length"),
    grow("'ab'", "'%s%s'|format(ns.s, ns.s)", "|length"),
    grow("[1]", "[ns.s, ns.s]"),
    grow("[1]", "(ns.s, ns.s)"),
    grow("[1]", "{'a': ns.s, 'b': ns.s}"),
    grow("[1]", "dict(a=ns.s, b=ns.s)"),
    grow("[1]", "[ns.s] * 10", "|tojson"),
    grow("[1]", "ns.s + ns.s", "|length"),
    grow("[1]", "[[ns.s, ns.s]|list]", "|string"),
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if range(99999)|sum > 3 and false %}{% endfor %}",
    "{% for x in range(9999) recursive %}{% if loop.depth < 4 %}{% set q = loop(range(9999)) %}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(80) }}",
    "{% macro f(n) %}{% if n %}{% set x = f(n - 1) %}{{ x }}{{ x }}{% else %}ab{% endif %}{% endmacro %}{{ f(80) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{% set x %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{% filter length %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endfilter %}",
    "{{ 'a'.center(10**10) }}{{ 'a'|center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ ('\t' * 9999).expandtabs(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%(a)1000000000d' % {'a': 1} }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "{{ 'a\na'|indent(10**9) }}",
    "{{ ('\n' * 99999)|indent('b' * 99999, true, true) }}",
    "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "{{ ('a' * 99999)|replace('', 'b' * 99999) }}",
    "{{ range(99999)|join('b' * 99999) }}",
    "{{ ('b' * 99999).join(range(99999)|map('string')) }}",
    "{{ range(99999)|map('replace', '1', 'b' * 99999)|list|length }}",
    "{{ [range(99999)|list] * 1000 }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{% set s = 'a' * 999999 %}{% for i in range(99999) %}{% if s ~ i == '' %}{% endif %}{% endfor %}",
    "{% set s = 'a' * 999999 %}{% for i in range(99999) %}{% if s.find('b') > 0 %}{% endif %}{% endfor %}",
    "{% set s = range(99999)|list %}{% for i in range(99999) %}{% if 'x' in s %}{% endif %}{% endfor %}",
    "(" * 3000,
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{% if x %}" * 3000,
    "x" * 300_000,
]


@pytest.mark.parametrize("source", ESCAPES)
@pytest.mark.security("A4")
def test_nothing_outside_is_reached(source: str) -> None:
    try:
        text = ChatTemplate(source).render(USER)
    except InvalidRequestError:
        return
    assert text.strip() == ""  # names that are not there print as nothing


@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:60])
@pytest.mark.security("A21")
def test_nothing_runs_on_or_fills_memory(source: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    if source.startswith("((("):  # plain text: long, and harmless
        assert ChatTemplate(source).render(USER) == source
    else:
        with pytest.raises(InvalidRequestError) as caught:
            ChatTemplate(source).render(USER)
        assert caught.value.fix
        assert len(caught.value.message) < 600
    assert time.monotonic() - start < 6  # the bound is 2, on a machine that is not busy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_bounds_leave_room_for_large_honest_conversations() -> None:
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content | trim + '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 50}] * 4000
    assert len(ChatTemplate(source).render(messages)) == 4000 * len("user: " + "word " * 50)
    long = [{"role": "user", "content": "word " * 1_000_000}]
    assert len(ChatTemplate(source).render(long)) == len("user: \n") + 5_000_000 - 1


def test_a_template_that_never_ends_is_tried_once() -> None:
    template = ChatTemplate("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(InvalidRequestError):
        template.render(USER)
    start = time.monotonic()
    for _ in range(3):
        with pytest.raises(InvalidRequestError, match="takes"):
            template.render(USER)
    assert time.monotonic() - start < 0.1
