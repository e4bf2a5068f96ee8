"""POST /v1/embeddings: pooled hidden states of the model, as OpenAI's API has them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

import msgspec
import numpy as np

from octavo.async_llm import AsyncLLM, new_id
from octavo.errors import InvalidRequestError
from octavo.frontend.embedding import check_dimensions, finished_embedding
from octavo.frontend.sample import OpenRequest
from octavo.request import EngineRequest
from octavo.server.answer import answer_whole
from octavo.server.generation import served_model
from octavo.server.http import Exchange
from octavo.server.protocol import decode, decoder

MAX_INPUTS = 2048


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """The body. Every field may be null, which means its default; unknown ones are ignored.

    Attributes:
        input: a text, token ids, or a list of either.
        encoding_format: numbers, or their float32 bytes (little-endian) in base64, which is a quarter of the size.
        dimensions: keep the first so many, then scale to length one again.
        pooling, normalize: as of `octavo.LLM.embed`.
    """

    input: str | list[Any] | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    cache_salt: str | None = None

    def inputs(self) -> list[str | list[int]]:
        """The texts or lists of ids. Ids inside are checked later, by the one validator.

        Raises:
            InvalidRequestError: there are none, too many, or of mixed kinds.
        """
        given = self.input
        if isinstance(given, str):
            given = [given]
        if not given:
            raise InvalidRequestError("input is missing or empty.", fix="Send a text or token ids.", param="input")
        if all(type(item) is int for item in given):
            return [given]
        if len(given) > MAX_INPUTS:
            raise InvalidRequestError(
                f"There are {len(given)} inputs, more than {MAX_INPUTS}.", fix="Send several requests.", param="input"
            )
        if all(isinstance(item, str) for item in given) or all(isinstance(item, list) for item in given):
            return given
        raise InvalidRequestError(
            "input must be a text, a list of texts, a list of token ids, or a list of lists of token ids.",
            fix="Do not mix them.",
            param="input",
        )


class Embeddings:
    """Serves embeddings.

    Args:
        names: of the model, the first of which is the proper one.
    """

    def __init__(self, llm: AsyncLLM, names: tuple[str, ...]):
        self._llm = llm
        self._names = names
        self._decoder = decoder(EmbeddingBody)

    async def embeddings(self, exchange: Exchange, data: bytes) -> None:
        """POST /v1/embeddings."""
        body = decode(self._decoder, data)
        model = served_model(body.model, self._names)
        check_dimensions(body.dimensions, self._llm.info.hidden_size)
        inputs = body.inputs()
        reply_id = "embd-" + new_id()
        requests: list[EngineRequest] = []
        for place, text in enumerate(inputs):
            try:
                request = await self._llm.embedding_request(
                    text,
                    request_id=f"{reply_id}-{place}",
                    pooling=body.pooling or "last",
                    priority=body.priority or 0,
                    cache_salt=body.cache_salt or "",
                    add_special_tokens=body.add_special_tokens is not False,
                    truncate_prompt_tokens=body.truncate_prompt_tokens,
                )
            except InvalidRequestError as error:
                if error.param == "prompt":
                    error.param = "input"
                raise
            requests.append(request)
            if len(inputs) > 1:
                await asyncio.sleep(0)  # other requests may have their turn
        stream = self._llm.submit(requests)
        await answer_whole(exchange, stream, lambda: _reply(reply_id, model, body, stream.opened))


def _reply(reply_id: str, model: str, body: EmbeddingBody, opened: list[OpenRequest]) -> dict[str, Any]:
    """Raises RequestFailedError: one of them failed in the engine."""
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(request, body)}
        for index, request in enumerate(opened)
    ]
    tokens = sum(len(request.prompt_token_ids) for request in opened)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": reply_id, "object": "list", "data": data, "model": model, "usage": usage}


def _encoded(request: OpenRequest, body: EmbeddingBody) -> list[float] | str:
    vector = finished_embedding(request, body.dimensions, body.normalize is not False)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode("ascii")
    values: list[float] = vector.tolist()
    return values
