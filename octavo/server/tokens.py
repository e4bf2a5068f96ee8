"""/tokenize, /detokenize, /tokenizer_info: the model's tokenizer over HTTP, with vLLM's fields.

Ids are those that the completion and chat endpoints would give the engine. Texts may be longer than the context, so
that clients can count before they cut; long ones are worked on in two threads, and few may wait for these.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from octavo.async_llm import AsyncLLM
from octavo.errors import InvalidRequestError
from octavo.frontend.chat_template import user_strings
from octavo.frontend.tokenizer import Tokenizer
from octavo.server.generation import served_model
from octavo.server.http import ClientGoneError, Exchange
from octavo.server.protocol import decode, decoder
from octavo.server.tools import check_tool_messages, tool_request

MAX_CHARS = 1 << 20  # of a text, or four for each token of the context if that is more
MAX_IDS = 1 << 20


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize: either `prompt` or `messages`.

    Attributes:
        add_special_tokens: of a prompt: put before it what the model expects there (default true). Templates write it
            themselves, so with messages it cannot be true.
        return_token_strs: also tell each token as the vocabulary spells it.
        tools, add_generation_prompt, continue_final_message, chat_template_kwargs: of messages, as in chat.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        """Raises InvalidRequestError: names the field that contradicts another one, or is missing."""
        if (self.prompt is None) == (self.messages is None):
            what = (
                "prompt and messages are both missing" if self.prompt is None else "prompt and messages are both sent"
            )
            raise InvalidRequestError(f"{what}.", fix="Send one of them.", param="prompt")
        if self.messages is None:
            for name in ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
                if getattr(self, name) is not None:
                    raise InvalidRequestError(f"{name} goes with messages only.", fix="Leave it out.", param=name)
            return
        if self.add_special_tokens:
            raise InvalidRequestError(
                "add_special_tokens goes with prompt only: the chat template writes what begins a conversation.",
                fix="Leave it out.",
                param="add_special_tokens",
            )
        if not self.messages:
            raise InvalidRequestError("messages are empty.", fix="Send at least one.", param="messages")
        check_tool_messages(self.messages)


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int] | None = None


class Tokens:
    """Serves the tokenizer.

    Args:
        names: of the model, the first of which is the proper one.
    """

    def __init__(self, llm: AsyncLLM, names: tuple[str, ...]):
        self._llm = llm
        self._names = names
        self._tokenize = decoder(TokenizeBody)
        self._detokenize = decoder(DetokenizeBody)

    @property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = self._llm.frontend.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("The server has no tokenizer.", fix="Start it without --skip-tokenizer-init.")
        return tokenizer

    async def tokenize(self, exchange: Exchange, data: bytes) -> None:
        """POST /tokenize."""
        body = decode(self._tokenize, data)
        body.check()
        served_model(body.model, self._names)
        tokenizer, inputs = self._tokenizer, self._llm.frontend.inputs
        longest = max(MAX_CHARS, 4 * inputs.max_model_len)
        num_chars = len(body.prompt or "") + sum(map(len, user_strings(body.messages or ())))
        if num_chars > longest:
            raise InvalidRequestError(
                f"The text has {num_chars} characters, more than {longest}.",
                fix="Send it in parts.",
                param="prompt" if body.messages is None else "messages",
            )
        tools = tool_request(body.tools, None, None)

        def work() -> bytes:
            if body.messages is None:
                ids = tokenizer.encode(body.prompt or "", body.add_special_tokens is not False)
            else:
                _, ids = inputs.encode_chat(
                    body.messages,
                    tools.tools if tools is not None else None,
                    add_generation_prompt=body.add_generation_prompt is not False,
                    continue_final_message=bool(body.continue_final_message),
                    chat_template_kwargs=body.chat_template_kwargs,
                )
            spelled = [tokenizer.token_text(each) or "" for each in ids] if body.return_token_strs else None
            reply = {"count": len(ids), "max_model_len": inputs.max_model_len, "tokens": ids, "token_strs": spelled}
            return orjson.dumps(reply)

        await self._answer(exchange, await self._llm.off_loop.text(work, num_chars, exchange.wait_gone))

    async def detokenize(self, exchange: Exchange, data: bytes) -> None:
        """POST /detokenize. Control tokens are spelled out."""
        body = decode(self._detokenize, data)
        served_model(body.model, self._names)
        tokenizer, ids = self._tokenizer, body.tokens
        if ids is None:
            raise InvalidRequestError("tokens are missing.", fix="Send a list of token ids.", param="tokens")
        if len(ids) > MAX_IDS:
            raise InvalidRequestError(
                f"There are {len(ids)} tokens, more than {MAX_IDS}.", fix="Send them in parts.", param="tokens"
            )
        vocab_size = self._llm.info.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            bad = next(each for each in ids if not 0 <= each < vocab_size)
            raise InvalidRequestError(
                f"There is no token id {str(bad)[:24]}.",
                fix=f"This model's ids are 0 to {vocab_size - 1}.",
                param="tokens",
            )

        def work() -> bytes:
            return orjson.dumps({"prompt": tokenizer.decode(ids, skip_special_tokens=False)})

        await self._answer(exchange, await self._llm.off_loop.text(work, len(ids), exchange.wait_gone))

    async def tokenizer_info(self, exchange: Exchange) -> None:
        """GET /tokenizer_info: what building prompts takes, under the names of tokenizer_config.json."""
        tokenizer = self._tokenizer
        facts, ends = tokenizer.facts, tokenizer.eos_token_ids
        info: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "tokenizer_model": type(tokenizer.backend.model).__name__,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": self._llm.info.max_model_len,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": ends[0] if ends else None,
            "eos_token_ids": list(ends),
            "chat_template": self._llm.frontend.inputs.chat_template,
            "special_tokens": list(tokenizer.special_spellings),
        }
        spelled = {
            name: facts.special_tokens.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        await exchange.json(200, info | spelled)

    async def _answer(self, exchange: Exchange, body: bytes | None) -> None:
        if body is None:
            raise ClientGoneError
        await exchange.reply(200, body, b"application/json")
