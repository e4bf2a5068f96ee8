"""The OpenAPI 3.1 document of the server, made from one table of routes and the structs that bodies are decoded into.

A new endpoint is one line in `ENDPOINTS`, with a struct for its body and, in `openapi_replies`, one for its reply.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo import __version__
from octavo.async_llm import AsyncLLM
from octavo.errors import OctavoError
from octavo.request import SamplingParams
from octavo.server import messages_schema as messages
from octavo.server import openapi_replies as replies
from octavo.server import responses_schema as responses
from octavo.server.auth import PUBLIC
from octavo.server.embeddings import EmbeddingBody
from octavo.server.messages_body import MessagesBody, PromptBody
from octavo.server.openapi_bounds import EXTRA_COMPONENTS, ModelFacts, Schema, bounds_of, replacements_of
from octavo.server.openapi_page import page
from octavo.server.protocol import ChatBody, CompletionBody
from octavo.server.protocol_fields import REFUSED
from octavo.server.responses_body import ResponsesBody
from octavo.server.tokens import DetokenizeBody, TokenizeBody

_REF = "#/components/schemas/{name}"
_JSON, _EVENTS, _TEXT, _HTML = "application/json", "text/event-stream", "text/plain", "text/html"
_OF_ALL = (401, 403, 431, 503)
_OF_BODIES = (400, 404, 408, 413, 415, 429, 500, 504)
_MEANING = {
    200: "Done.",
    400: "The request cannot be served as written; `param` names the field.",
    401: "The API key is missing or wrong.",
    403: "The server does not go by this Host.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not JSON, or compressed.",
    429: "Too many requests of this key wait; `Retry-After` says when to come back.",
    431: "The headers are too large.",
    500: "The request failed in the engine, or a fault of the server.",
    503: "Overloaded, loading, shutting down or without an engine; `Retry-After` says when to come back.",
    504: "The request took longer than it may.",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route, as the document tells of it.

    Attributes:
        reply: what a 200 holds in JSON; None if it is of `media`.
        body: what is sent, if anything.
        required: fields of the body that must be there; either: fields one of which must be.
        streams: `"stream": true` makes the reply a stream of server-sent events, which this describes.
        statuses: of errors that come beside those of all routes.
        unwell: 503 has the reply's own form, not that of errors.
        errors: the form of errors.
    """

    method: str
    path: str
    summary: str
    reply: Any = None
    body: type[msgspec.Struct] | None = None
    required: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    streams: str = ""
    statuses: tuple[int, ...] = ()
    unwell: bool = False
    media: str = _JSON
    errors: Any = replies.ErrorReply

    @property
    def tag(self) -> str:
        """The heading it is shown under."""
        return "Model" if self.body is not None or self.path.startswith(("/v1/", "/tokenizer")) else "Server"


_DATA_LINES = (
    "Lines `data: {...}` with pieces of the reply, `data: [DONE]` at the end; an error is an event with `error`."
)
ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", "Answer a conversation.", replies.ChatCompletion, ChatBody, ("messages",),
             streams=_DATA_LINES),
    Endpoint("POST", "/v1/completions", "Go on from a text, or from several.", replies.Completion, CompletionBody,
             ("prompt",), streams=_DATA_LINES),
    Endpoint("POST", "/v1/responses", "Answer items, and keep the answer.", responses.ResponseObject, ResponsesBody,
             ("input",), streams="Typed events `response...` with numbers, `data: [DONE]` at the end."),
    Endpoint("GET", "/v1/responses/{response_id}", "A response that is kept.", responses.ResponseObject,
             statuses=(400, 404)),
    Endpoint("DELETE", "/v1/responses/{response_id}", "Forget a response.", responses.DeletedResponse, statuses=(404,)),
    Endpoint("GET", "/v1/responses/{response_id}/input_items", "What a response answers.", responses.InputItemList,
             statuses=(400, 404)),
    Endpoint("POST", "/v1/messages", "Answer a conversation, in the words of Anthropic's API.", messages.MessageObject,
             MessagesBody, ("messages", "max_tokens"), streams="Anthropic's typed events, up to `message_stop`.",
             errors=messages.MessageErrorReply),
    Endpoint("POST", "/v1/messages/count_tokens", "The length of such a conversation.", messages.CountedTokens,
             PromptBody, ("messages",), errors=messages.MessageErrorReply),
    Endpoint("POST", "/v1/embeddings", "Texts to vectors.", replies.EmbeddingList, EmbeddingBody, ("input",)),
    Endpoint("GET", "/v1/models", "The served models.", replies.ModelList),
    Endpoint("GET", "/v1/models/{model}", "One served model; its name may hold slashes.", replies.ModelCard,
             statuses=(404,)),
    Endpoint("POST", "/tokenize", "A text, or a conversation, to token ids.", replies.Tokenized, TokenizeBody,
             either=("prompt", "messages")),
    Endpoint("POST", "/detokenize", "Token ids to text.", replies.Detokenized, DetokenizeBody, ("tokens",)),
    Endpoint("GET", "/tokenizer_info", "Facts of the tokenizer.", replies.TokenizerFacts, statuses=(400,)),
    Endpoint("GET", "/live", "200 unless the engine has ended for good.", replies.Status, unwell=True),
    Endpoint("GET", "/startup", "200 once the model is loaded.", replies.Status, unwell=True),
    Endpoint("GET", "/ready", "200 while requests are taken.", replies.Status, unwell=True),
    Endpoint("GET", "/health", "The same as /ready.", replies.Status, unwell=True),
    Endpoint("GET", "/version", "Octavo's version.", replies.Version),
    Endpoint("GET", "/metrics", "Metrics in Prometheus' text format.", media=_TEXT),
    Endpoint("GET", "/openapi.json", "This document.", dict[str, Any]),
    Endpoint("GET", "/docs", "This document, to be read.", media=_HTML),
)  # fmt: skip


def described(facts: ModelFacts | None, *, keyed: bool, served: Collection[str]) -> tuple[bytes, bytes]:
    """The document in JSON, and its page in HTML; arguments as of `document`."""
    made = document(facts, keyed=keyed, served=served)
    return msgspec.json.encode(made), page(made).encode()


def model_facts(llm: AsyncLLM, names: tuple[str, ...]) -> ModelFacts | None:
    """Facts of a loaded model."""
    try:
        info, inputs = llm.info, llm.frontend.inputs
    except OctavoError:
        return None
    return ModelFacts(names, info.vocab_size, info.max_model_len, info.hidden_size, inputs.max_logprobs)


def document(
    facts: ModelFacts | None = None, *, keyed: bool = False, served: Collection[str] | None = None
) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        facts: of the model, once it is loaded: its names, and bounds on ids and lengths.
        keyed: whether requests need a key.
        served: paths; None is all.
    """
    endpoints = [each for each in ENDPOINTS if served is None or "{" in each.path or each.path in served]
    schemas = _Schemas(endpoints, facts)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas, keyed, facts)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Octavo",
            "version": __version__,
            "description": "Serves a large language model with OpenAI's API and vLLM's extras. Unknown fields of "
            "bodies are ignored; null is a field's default.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": "Model"}, {"name": "Server"}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(endpoint: Endpoint, schemas: _Schemas, keyed: bool, facts: ModelFacts | None) -> dict[str, Any]:
    ok = {endpoint.media: {"schema": schemas.of(endpoint.reply)}} if endpoint.reply is not None else {}
    if endpoint.reply is None:
        ok = {endpoint.media: {"schema": {"type": "string"}}}
    if endpoint.streams:
        ok[_EVENTS] = {}
    identity = {
        "x-request-id": {"schema": {"type": "string"}, "description": "The client's, or one made up."},
        "openai-processing-ms": {
            "schema": {"type": "integer"},
            "description": "From the request's head to the reply's.",
        },
    }
    later = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    meaning = f"{_MEANING[200]} A stream: {endpoint.streams}" if endpoint.streams else _MEANING[200]
    responses: dict[str, Any] = {"200": {"description": meaning, "headers": identity, "content": ok}}
    statuses = {*_OF_ALL, *endpoint.statuses, *(_OF_BODIES if endpoint.body is not None else ())}
    for status in sorted(statuses):
        kind = endpoint.reply if status == 503 and endpoint.unwell else endpoint.errors
        content = {_JSON: {"schema": schemas.of(kind)}}
        headers = identity | (later if status in (429, 503) and not endpoint.unwell else {})
        responses[str(status)] = {"description": _MEANING[status], "headers": headers, "content": content}
    operation: dict[str, Any] = {
        "operationId": endpoint.method.lower() + re.sub(r"\W+", "_", endpoint.path).rstrip("_"),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "security": [{"bearer": []}, {"key": []}] if keyed and endpoint.path not in PUBLIC else [],
        "responses": responses,
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schemas.of(endpoint.body)}}}
    names = re.findall(r"\{(\w+)\}", endpoint.path)
    if names:
        operation["parameters"] = [_parameter(name, facts) for name in names]
    return operation


def _parameter(name: str, facts: ModelFacts | None) -> dict[str, Any]:
    """A part of the path that the client chooses."""
    schema: Schema = {"type": "string", "minLength": 1}
    if name == "model" and facts is not None:
        schema["enum"] = list(facts.names)
    return {"name": name, "in": "path", "required": True, "schema": schema}


class _Schemas:
    """JSON schemas of bodies and replies; `components` are those that have names."""

    def __init__(self, endpoints: Iterable[Endpoint], facts: ModelFacts | None):
        kinds = [
            *{each.errors: None for each in endpoints},
            *(endpoint.reply for endpoint in endpoints if endpoint.reply is not None),
        ]
        bodies = {endpoint.body: endpoint for endpoint in endpoints if endpoint.body is not None}
        kinds += bodies
        made, components = msgspec.json.schema_components(kinds, ref_template=_REF)
        self._made = list(zip(kinds, made, strict=True))
        self.components: dict[str, Schema] = components | dict(EXTRA_COMPONENTS)
        for kind in _structs(kinds):
            if kind.__name__ in components:
                _describe(components[kind.__name__], kind)
        for body, endpoint in bodies.items():
            _bound(components[body.__name__], body.__name__, endpoint, facts)

    def of(self, kind: Any) -> Schema:
        """The schema of one of the endpoints' bodies or replies."""
        return next(schema for each, schema in self._made if each is kind or each == kind)


def _structs(kinds: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """All structs that are reached from some types."""
    open_ = [msgspec.inspect.type_info(kind) for kind in kinds]
    seen: set[type[msgspec.Struct]] = set()
    while open_:
        info = open_.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            open_ += [each.type for each in info.fields]
        for name in ("item_type", "value_type", "types"):
            inner = getattr(info, name, ())
            open_ += inner if isinstance(inner, tuple) else [inner]
    return seen


def _describe(schema: Schema, kind: type[msgspec.Struct]) -> None:
    """Descriptions from the docstrings: the struct's first paragraph, and its fields from "Attributes:"."""
    schema["description"] = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    texts = _attributes(SamplingParams) if hasattr(kind, "params") else {}
    for base in reversed(kind.__mro__):
        texts |= _attributes(base)
    for name, each in schema["properties"].items():
        if name in texts:
            each["description"] = texts[name]


def _attributes(kind: type) -> dict[str, str]:
    """What a class's docstring says of each attribute."""
    doc = inspect.cleandoc(vars(kind).get("__doc__") or "")
    _, _, section = doc.partition("\nAttributes:\n")
    entries = re.split(r"^    (?=\w)", section, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for entry in entries:
        names, _, text = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), text[:1].upper() + text[1:])
    return found


def _bound(schema: Schema, owner: str, endpoint: Endpoint, facts: ModelFacts | None) -> None:
    """Add to a body's schema what holds beyond its types."""
    bounds, replacements = bounds_of(facts), replacements_of(facts)
    properties: dict[str, Schema] = schema["properties"]
    for name in REFUSED:
        properties.pop(name, None)
    for name, each in properties.items():
        each.pop("default", None)  # null, which says nothing
        replacement = replacements.get(f"{owner}.{name}", replacements.get(name))
        if replacement is not None and not _is_boolean(each):
            properties[name] = each = _nullable(replacement) | _kept(each)
        elif name in bounds and not _is_boolean(each):
            _narrow(each, bounds.get(f"{owner}.{name}", bounds[name]))
        if name in endpoint.required:
            properties[name] = _not_null(each)
    schema.pop("required", None)
    if endpoint.required:
        schema["required"] = list(endpoint.required)
    if endpoint.either:
        schema["anyOf"] = [{"required": [name]} for name in endpoint.either]


def _kept(schema: Mapping[str, Any]) -> Schema:
    return {key: schema[key] for key in ("description",) if key in schema}


def _is_boolean(schema: Schema) -> bool:
    return any(each.get("type") == "boolean" for each in schema.get("anyOf", ())) and len(schema["anyOf"]) == 2


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [*schema.get("anyOf", [schema]), {"type": "null"}]}


def _not_null(schema: Schema) -> Schema:
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if not kinds:
        return schema
    return (kinds[0] if len(kinds) == 1 else {"anyOf": kinds}) | _kept(schema)


def _narrow(schema: Schema, bounds: Schema) -> None:
    """Put bounds on the alternative that is not null."""
    for each in schema.get("anyOf", [schema]):
        if each.get("type") != "null":
            each |= bounds
