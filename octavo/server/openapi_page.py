"""/docs: the OpenAPI document as one page of plain HTML. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from octavo.server.http import Headers

HEADERS: Headers = (
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
code, .method { font-family: ui-monospace, monospace; font-size: .92em; }
nav a { margin-right: 1em; white-space: nowrap; }
h3 { border-top: 1px solid #8886; padding-top: 1em; margin-top: 2em; }
.method { font-weight: 700; border: 1px solid; border-radius: .3em; padding: 0 .4em; margin-right: .5em; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .25em .8em .25em 0; }
tr { border-bottom: 1px solid #8883; } .dim { opacity: .7; }
"""
_KEYWORDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "minLength": "at least {} characters",
    "maxLength": "at most {} characters", "minItems": "at least {} items", "maxItems": "at most {} items",
    "maxProperties": "at most {} entries", "pattern": "as {}",
}  # fmt: skip

Schema = Mapping[str, Any]


def page(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document that `octavo.server.openapi` made."""
    return "\n".join(_page(document)) + "\n"


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    info, schemas = document["info"], document["components"]["schemas"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body>"
    yield f"<h1>{title}</h1><p>{escape(info['description'])}</p>"
    yield '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for tag in document["tags"]:
        chosen = [each for each in operations if tag["name"] in each[2]["tags"]]
        yield f"<h2>{escape(tag['name'])}</h2><nav>"
        yield from (f'<a href="#{op["operationId"]}">{escape(path)}</a>' for path, _, op in chosen)
        yield "</nav>"
        for path, method, operation in chosen:
            yield from _operation(path, method, operation)
    yield "<h2>Objects</h2>"
    for name in sorted(schemas):
        yield f'<h3 id="schema-{escape(name)}">{escape(name)}</h3><p>{_prose(schemas[name])}</p>'
        yield from _fields(schemas[name])
    yield "</body></html>"


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{operation["operationId"]}"><span class="method">{method.upper()}</span>'
    yield f"<code>{escape(path)}</code></h3>"
    key = " Needs a key." if operation["security"] else ""
    yield f"<p>{escape(operation['summary'])}{key}</p>"
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield f"<p>Body: {_type(schema)}</p>"
    yield "<table><tr><th>Status<th>Reply<th></tr>"
    for status, reply in operation["responses"].items():
        kinds = "<br>".join(
            f'{_type(media["schema"]) if "schema" in media else ""} <span class="dim">{escape(kind)}</span>'
            for kind, media in reply["content"].items()
        )
        yield f"<tr><td>{status}<td>{kinds}<td>{escape(reply['description'])}</tr>"
    yield "</table>"


def _fields(schema: Schema) -> Iterator[str]:
    required = schema.get("required", ())
    yield "<table>"
    for name, each in schema.get("properties", {}).items():
        mark = ' <span class="dim">required</span>' if name in required else ""
        yield f"<tr><td><code>{escape(name)}</code>{mark}<td>{_type(each)}<td>{_prose(each)}</tr>"
    yield "</table>"


def _prose(schema: Schema) -> str:
    return escape(schema.get("description", ""))


def _type(schema: Schema) -> str:
    """A type in words, with links to the objects it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
    kind = schema.get("type", "anything")
    words = escape(" or ".join(kind) if isinstance(kind, list) else kind)
    if kind == "array" and "items" in schema:
        words = f"list of ({_type(schema['items'])})"
    elif kind == "object" and schema.get("additionalProperties"):
        words = f"object of ({_type(schema['additionalProperties'])})"
    bounds = [text.format(schema[name]) for name, text in _KEYWORDS.items() if name in schema]
    return words + (f' <span class="dim">{escape(", ".join(bounds))}</span>' if bounds else "")
