"""The ASGI application: who may come in, which route it is, and every way of failing turned into one JSON reply."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from octavo import __version__
from octavo.async_llm import AsyncLLM
from octavo.config import ServerOptions
from octavo.errors import EngineDeadError, ModelNotFoundError, OctavoError, OverloadedError
from octavo.frontend.caller import CALLER, Caller
from octavo.frontend.sampling_defaults import sampling_defaults
from octavo.server.access import log_access
from octavo.server.auth import PUBLIC, KeyRing, check_host, is_loopback, unauthorized
from octavo.server.chat_parts import Formats
from octavo.server.embeddings import Embeddings
from octavo.server.generation import Generation
from octavo.server.http import ClientGoneError, Exchange, HttpError, Receive, Scope, Send, shown
from octavo.server.limits import BodyBudget, check_shape, deadline_of
from octavo.server.messages import Messages, anthropic_error, speaks_anthropic
from octavo.server.metrics import ROUTES, Metrics
from octavo.server.openapi import described, model_facts
from octavo.server.openapi_bounds import ModelFacts
from octavo.server.openapi_page import HEADERS as PAGE_HEADERS
from octavo.server.responses import PREFIX as RESPONSE_PREFIX
from octavo.server.responses import Responses, methods_of
from octavo.server.tokens import Tokens
from octavo.server.tracing import RequestTracer

logger = logging.getLogger("octavo.server")

_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_MODEL_PREFIX = "/v1/models/"

Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """An ASGI application over one `AsyncLLM`.

    Attributes:
        draining: /ready says so; what is open may finish.
        refusing: no new work is taken.
        num_exchanges: requests that are being received or answered.
        keys: that open it; without any it is open to all who reach it.
        tracer: makes spans of exchanges, if any are wanted.
        gather_metrics: makes the page of all processes that serve together out of this one's.
    """

    def __init__(self, llm: AsyncLLM, options: ServerOptions, keys: KeyRing | None = None):
        self.llm = llm
        self.options = options
        self.draining = self.refusing = False
        self.num_exchanges = 0
        self._bodies = BodyBudget(max(options.max_body_bytes, options.max_body_bytes_in_all))
        self.metrics = Metrics()
        self.tracer: RequestTracer | None = None
        self.gather_metrics: Callable[[str], Awaitable[str]] | None = None
        llm.on_end = self.metrics.ended
        llm.on_step = self.metrics.stepped
        self.keys = KeyRing.of(options) if keys is None else keys
        self._on_loopback = is_loopback(options.host)
        self._allowed_hosts = frozenset(name.lower() for name in options.allowed_host)
        self._generation: Generation | None = None
        self._described: tuple[ModelFacts | None, bytes, bytes] | None = None
        self._responses = Responses(llm, options.responses_store_size)
        self._messages = Messages(llm)
        self._created = int(time.time())
        self._routes: dict[str, tuple[str, Handler]] = {
            "/live": ("GET", self._live),
            "/startup": ("GET", self._startup),
            "/ready": ("GET", self._ready),
            "/health": ("GET", self._ready),
            "/version": ("GET", self._version),
            "/metrics": ("GET", self._metrics_page),
            "/v1/models": ("GET", self._models),
            "/v1/completions": ("POST", self._completions),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/responses": ("POST", self._respond),
            "/v1/messages": ("POST", self._message),
            "/v1/messages/count_tokens": ("POST", self._count_tokens),
            "/v1/embeddings": ("POST", self._embed),
            "/tokenize": ("POST", self._tokenize),
            "/detokenize": ("POST", self._detokenize),
            "/openapi.json": ("GET", self._openapi),
            "/docs": ("GET", self._docs),
        }
        if options.enable_tokenizer_info_endpoint:
            self._routes["/tokenizer_info"] = ("GET", self._tokenizer_info)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"Octavo serves HTTP, not {scope['type']}")
        exchange = Exchange(scope, receive, send)
        exchange.keep_alive = self.options.sse_keep_alive
        if speaks_anthropic(exchange.path):
            exchange.error_body = anthropic_error
            exchange.also = ((b"request-id", exchange.request_id.encode()),)
        self.num_exchanges += 1
        try:
            self._admit(exchange)
            await self._handler(exchange)(exchange)
        except ClientGoneError:
            exchange.status = exchange.status or 499
        except OctavoError as error:
            await self._refuse(exchange, error)
        except Exception as error:
            logger.exception("request %s failed", exchange.request_id)
            if exchange.status:
                raise  # the reply has begun: the server closes the connection
            await self._refuse(exchange, shown(error))
        finally:
            self.num_exchanges -= 1
            self._bodies.give(exchange.held)
            route = _route_name(exchange.path)
            self.metrics.replied(route, exchange.status)
            log_access(exchange, route)
            if self.tracer is not None:
                self.tracer.ended(exchange, route, self.names[0])
            exchange.release()

    async def _refuse(self, exchange: Exchange, error: OctavoError) -> None:
        if isinstance(error, OverloadedError):
            self.metrics.rejected += 1
        await exchange.error(error)

    def _admit(self, exchange: Exchange) -> None:
        """Only exact public paths need no key. Without keys, names that are not ours are refused on loopback."""
        headers, tenant = exchange.scope["headers"], ""
        if not self.keys:
            if self._on_loopback:
                check_host(headers, self._allowed_hosts)
        elif exchange.path not in PUBLIC:
            known = self.keys.identify(headers)
            if known is None:
                raise unauthorized()
            tenant = known
        if exchange.path in PUBLIC:
            return
        if exchange.scope.get("state", {}).get("crowded"):
            raise OverloadedError("There are too many connections.", fix="Try again later, with fewer.")
        CALLER.set(self._caller(exchange, tenant))

    def _caller(self, exchange: Exchange, tenant: str) -> Caller:
        options, several = self.options, len(self.keys) > 1
        isolated = options.prefix_cache_isolation == "key" or (options.prefix_cache_isolation == "auto" and several)
        share = max(1, self.llm.config.scheduler.max_num_queued_reqs // 2) if several else None
        return Caller(
            tenant=tenant,
            cache_secret=tenant.encode() if isolated else b"",
            deadline=deadline_of(exchange.headers, options.request_timeout),
            max_waiting=options.max_queued_reqs_per_key or share,
        )

    def _handler(self, exchange: Exchange) -> Handler:
        path = exchange.path
        if path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
            route: tuple[str, Handler] | None = ("GET", self._model)
        elif allowed := methods_of(path):
            route = (exchange.method if exchange.method in allowed else ", ".join(allowed), self._responses.stored)
        else:
            route = self._routes.get(path)
        if route is None:
            raise HttpError(404, "unknown_route", f"There is no {path[:200]!r} here.", fix="See the documentation.")
        method, handler = route
        if exchange.method != method and (exchange.method, method) != ("HEAD", "GET"):
            message = f"{path[:200]} takes {method}, not {exchange.method[:20]}."
            raise HttpError(405, "method_not_allowed", message, fix=f"Use {method}.", allow=method)
        return handler

    # -- how it stands -------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """ready, loading, draining, hung, restarting, dead or closed."""
        state = self.llm.state
        return "draining" if self.draining and state in ("ready", "hung", "restarting") else state

    async def _live(self, exchange: Exchange) -> None:
        alive = self.llm.state != "dead"
        await exchange.json(200 if alive else 503, {"status": "alive" if alive else "dead"})

    async def _startup(self, exchange: Exchange) -> None:
        """200 once the model is loaded: what a startup probe asks."""
        if self.llm.state in ("new", "loading"):
            phase, fraction = self.llm.loading
            await exchange.json(503, {"status": "starting", "phase": phase, "percent": round(100 * fraction)})
        elif self.llm.state == "dead":
            await exchange.json(503, {"status": "dead"})
        else:
            await exchange.json(200, {"status": "started"})

    async def _ready(self, exchange: Exchange) -> None:
        status = self.status
        content: dict[str, Any] = {"status": status}
        if status == "loading":
            content["phase"], content["fraction"] = self.llm.loading
        elif status == "dead" and self.llm.error is not None:
            content["message"] = self.llm.error.message
        await exchange.json(200 if status == "ready" else 503, content)

    async def _version(self, exchange: Exchange) -> None:
        await exchange.json(200, {"version": __version__})

    async def _metrics_page(self, exchange: Exchange) -> None:
        text = self.metrics_text()
        if self.gather_metrics is not None:
            text = await self.gather_metrics(text)
        await exchange.reply(200, text.encode(), _METRICS_TYPE)

    def metrics_text(self) -> str:
        """What this process tells at /metrics."""
        return self.metrics.text(
            self.names[0],
            self.llm.stats,
            state=self.status,
            num_open=self.llm.num_open,
            num_restarts=self.llm.num_restarts,
            cache=self._cache_facts(),
        )

    def _cache_facts(self) -> dict[str, str | int] | None:
        try:
            info = self.llm.info
        except OctavoError:
            return None
        cached = self.llm.config.cache.enable_prefix_caching
        return {
            "block_size": info.page_size,
            "num_gpu_blocks": info.num_pages,
            "enable_prefix_caching": str(cached),
            "device": info.device,
        }

    # -- what it can do ------------------------------------------------------------------------------------------

    async def _openapi(self, exchange: Exchange) -> None:
        document, _ = await self._description()
        await exchange.reply(200, document, b"application/json")

    async def _docs(self, exchange: Exchange) -> None:
        _, page = await self._description()
        await exchange.reply(200, page, b"text/html; charset=utf-8", PAGE_HEADERS)

    async def _description(self) -> tuple[bytes, bytes]:
        """The OpenAPI document and its page; made when first asked for, and again once the model is loaded."""
        facts = model_facts(self.llm, self.names)
        if self._described is None or self._described[0] != facts:
            made = await asyncio.to_thread(described, facts, keyed=bool(self.keys), served=tuple(self._routes))
            self._described = (facts, *made)
        return self._described[1:]

    # -- models --------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model."""
        if self.options.served_model_name:
            return self.options.served_model_name
        asked = self.llm.config.model.model
        loaded = self.llm.state not in ("new", "loading", "dead", "closed")
        return tuple(dict.fromkeys((asked, self.llm.info.model))) if loaded else (asked,)

    def _card(self, name: str) -> dict[str, Any]:
        info = self.llm.info
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "octavo",
            "root": info.model,
            "parent": None,
            "max_model_len": info.max_model_len,
            "vocab_size": info.vocab_size,
        }

    async def _models(self, exchange: Exchange) -> None:
        self._generator()
        await exchange.json(200, {"object": "list", "data": [self._card(name) for name in self.names]})

    async def _model(self, exchange: Exchange) -> None:
        self._generator()
        name = exchange.path[len(_MODEL_PREFIX) :]
        if name not in self.names:
            raise ModelNotFoundError(
                f"The model {name[:200]!r} is not served here.",
                fix=f"Served are: {', '.join(self.names)}.",
                param="model",
            )
        await exchange.json(200, self._card(name))

    # -- generation ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what generation needs, now that the model is loaded. Raises as a request would."""
        self._generator()

    def _generator(self) -> Generation:
        """Raises OverloadedError while the model is loading, EngineDeadError after its end."""
        state = self.llm.state
        if state in ("new", "loading"):
            raise OverloadedError("The model is being loaded.", retry_after=2.0, fix="Try again when /ready says so.")
        if state == "restarting":
            raise OverloadedError("The engine is being started again.", retry_after=2.0, fix="Try again soon.")
        if state in ("dead", "closed"):
            raise EngineDeadError("The engine has ended.", fix="Restart the server; its log says why.")
        if self._generation is None:
            formats = Formats.of(self.options, self.llm)
            defaults = sampling_defaults(self.options.generation_config, self.llm.config)
            self._generation = Generation(self.llm, self.names, formats, self.options.max_choices, defaults)
        return self._generation

    async def _completions(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        await self._generator().completions(exchange, data)

    async def _chat(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        await self._generator().chat(exchange, data)

    async def _respond(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        await self._responses.create(exchange, data, self._generator(), self.names)

    async def _message(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        await self._messages.create(exchange, data, self._generator(), self.names)

    async def _count_tokens(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        self._generator()  # raises unless there is a model
        await self._messages.count_tokens(exchange, data, self.names)

    async def _embed(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        self._generator()  # raises unless there is a model
        await Embeddings(self.llm, self.names).embeddings(exchange, data)

    async def _tokenize(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        await self._tokens().tokenize(exchange, data)

    async def _detokenize(self, exchange: Exchange) -> None:
        data = await self._body(exchange)
        await self._tokens().detokenize(exchange, data)

    async def _tokenizer_info(self, exchange: Exchange) -> None:
        await self._tokens().tokenizer_info(exchange)

    def _tokens(self) -> Tokens:
        self._generator()  # raises unless there is a model
        return Tokens(self.llm, self.names)

    async def _body(self, exchange: Exchange) -> bytes:
        if self.refusing:
            raise OverloadedError("The server is shutting down.", retry_after=5.0, fix="Try another one.")
        data = await exchange.body(self.options.max_body_bytes, self.options.read_timeout, self._bodies.take)
        check_shape(data)
        return data


def build_app(llm: AsyncLLM, options: ServerOptions | None = None, keys: KeyRing | None = None) -> App:
    """The application over an `AsyncLLM`, which may still be loading.

    Args:
        keys: default: those that the options and the environment name.
    """
    return App(llm, options or ServerOptions(), keys)


def _route_name(path: str) -> str:
    """One of `ROUTES`."""
    if path.startswith(_MODEL_PREFIX):
        return "/v1/models"
    if path.startswith(RESPONSE_PREFIX):
        return RESPONSE_PREFIX + "{response_id}"
    path = "/ready" if path == "/health" else path
    return path if path in ROUTES else "other"
