"""/v1/responses: OpenAI's responses, over what answers chats, and a memory of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import orjson

from octavo.async_llm import AsyncLLM, new_id
from octavo.errors import InvalidRequestError
from octavo.frontend.caller import CALLER
from octavo.server.answer import answer, answer_whole
from octavo.server.generation import Generation, served_model
from octavo.server.http import Exchange, HttpError
from octavo.server.protocol import decode, decoder
from octavo.server.responses_body import ResponsesBody
from octavo.server.responses_items import Item, input_items
from octavo.server.responses_reply import Response, ResponseReply, begun_response
from octavo.server.responses_store import ResponseStore, Stored

PREFIX = "/v1/responses/"
_PATH = re.compile(r"/v1/responses/(resp_[A-Za-z0-9_.:-]{1,128})(|/input_items|/cancel)")
_METHODS = {"": ("GET", "HEAD", "DELETE"), "/input_items": ("GET", "HEAD"), "/cancel": ("POST",)}
_MAX_PAGE = 100
_PAGE = 20


class Responses:
    """Serves responses.

    Args:
        size: how many are kept.
    """

    def __init__(self, llm: AsyncLLM, size: int):
        self._llm = llm
        self._decoder = decoder(ResponsesBody)
        self.store = ResponseStore(size)

    async def create(self, exchange: Exchange, data: bytes, generation: Generation, names: tuple[str, ...]) -> None:
        """POST /v1/responses.

        Args:
            names: of the model, the first of which is the proper one.
        """
        body = decode(self._decoder, data)
        body.check()
        model = served_model(body.model, names)
        items = [*self._earlier(body), *input_items(body.input)]
        response_id = "resp_" + (body.request_id or new_id())
        try:
            stream, parts = await generation.open_chat(body.chat(items), response_id)
        except InvalidRequestError as error:
            raise body.renamed(error) from None
        tenant, stored = CALLER.get().tenant, body.store is not False and self.store.size > 0

        def keep(response: Response) -> None:
            if stored:
                self._keep(tenant, response, items)

        opened = stream.opened[0]
        reply = ResponseReply(
            begun_response(body, response_id, model, opened.params, stored),
            body,
            opened,
            self._llm.frontend.tokenizer,
            parts,
            keep=keep,
            caches=self._llm.config.cache.enable_prefix_caching,
        )
        if body.stream:
            await answer(exchange, stream, reply, True)
        else:
            await answer_whole(exchange, stream, reply.whole, None if reply.plain else reply.chunks)

    def _earlier(self, body: ResponsesBody) -> list[Item]:
        """The conversation that the input goes on with."""
        if body.previous_response_id is None:
            return []
        stored = self.store.get(CALLER.get().tenant, body.previous_response_id)
        if stored is None:
            raise InvalidRequestError(
                "previous_response_id is of no response that is kept here.",
                fix="Send the whole conversation as input.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        items: list[Item] = orjson.loads(stored.items)
        return items

    def _keep(self, tenant: str, response: Response, items: Sequence[Item]) -> None:
        kept = Stored(orjson.dumps(response), orjson.dumps([*items, *response["output"]]), len(items))
        self.store.put(tenant, response["id"], kept)

    # -- what is kept --------------------------------------------------------------------------------------------

    async def stored(self, exchange: Exchange) -> None:
        """GET or DELETE /v1/responses/ID, GET .../input_items, POST .../cancel.

        Raises:
            HttpError: there is no such response of this key.
            InvalidRequestError: the query is of no use, or what is asked for cannot be.
        """
        found = _PATH.fullmatch(exchange.path)
        response_id, rest = found.groups() if found else ("", "")
        tenant = CALLER.get().tenant
        stored = self.store.get(tenant, response_id)
        if stored is None:
            message = f"There is no response {response_id!r} here."
            raise HttpError(404, "response_not_found", message, fix="Only the newest are kept, and none without store.")
        if rest == "/cancel":
            raise InvalidRequestError(
                "Only responses with background can be cancelled, and there are none.",
                fix="Hang up: that ends a response.",
                code="unsupported_value",
            )
        query = _query(exchange.scope)
        if rest == "/input_items":
            await exchange.json(200, _page(stored, query))
        elif exchange.method == "DELETE":
            self.store.remove(tenant, response_id)
            await exchange.json(200, {"id": response_id, "object": "response", "deleted": True})
        else:
            _check_stream(query)
            await exchange.reply(200, stored.response, b"application/json")


def methods_of(path: str) -> tuple[str, ...]:
    """What a path under `PREFIX` takes; nothing if there is none of it."""
    found = _PATH.fullmatch(path)
    return _METHODS[found.group(2)] if found else ()


def _query(scope: Mapping[str, Any]) -> dict[str, str]:
    """The last value of each name."""
    try:
        named = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=100)
    except ValueError:
        raise InvalidRequestError("The query has too many fields.", fix="Send fewer.") from None
    return {name: values[-1] for name, values in named.items()}


def _check_stream(query: Mapping[str, str]) -> None:
    if query.get("stream", "false").lower() not in ("false", "0"):
        raise InvalidRequestError(
            "stream is not supported here: events are not kept.",
            fix="Leave it out.",
            param="stream",
            code="unsupported_value",
        )


def _page(stored: Stored, query: Mapping[str, str]) -> dict[str, Any]:
    """Some of a response's input items, the newest first unless `order` is "asc"."""
    order, limit = query.get("order", "desc"), query.get("limit", str(_PAGE))
    if order not in ("asc", "desc"):
        raise InvalidRequestError("order is neither asc nor desc.", fix="Choose one.", param="order")
    if not (limit.isascii() and limit.isdecimal()) or len(limit) > 3 or not 1 <= int(limit) <= _MAX_PAGE:
        raise InvalidRequestError(f"limit is not 1 to {_MAX_PAGE}.", fix="Ask for several pages.", param="limit")
    items: list[Item] = orjson.loads(stored.items)[: stored.num_input]
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if "after" in query:
        if query["after"] not in ids:
            raise InvalidRequestError("after is no item of this response.", fix="Send an item's id.", param="after")
        items = items[ids.index(query["after"]) + 1 :]
    page = items[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(page) < len(items),
    }
