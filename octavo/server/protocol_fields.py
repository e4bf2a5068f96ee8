"""Fields that change no token of an answer, and fields that this server cannot act on and therefore refuses by name."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.frontend.tokenizer import Tokenizer

MAX_LABEL_CHARS = 512  # of user, safety_identifier, prompt_cache_key
MAX_METADATA = 16
MAX_METADATA_KEY_CHARS = 64
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 128

_TEXT_ONLY = "Send text; this server takes no other media."
_NOT_HERE = "Leave it out: this server has no such feature."
REFUSED: Mapping[str, str] = {
    "prompt_embeds": "Send a text or token ids.",
    "mm_processor_kwargs": _TEXT_ONLY,
    "media_io_kwargs": _TEXT_ONLY,
    "kv_transfer_params": _NOT_HERE,
    "ec_transfer_params": _NOT_HERE,
    "logits_processors": _NOT_HERE,
    "custom_logit_processor": _NOT_HERE,
    "vllm_xargs": _NOT_HERE,
    "thinking_token_budget": "Leave it out, or bound the whole answer with max_tokens.",
    "repetition_detection": "Leave it out; repetition_penalty and max_tokens are taken.",
    "logprob_token_ids": "Leave it out; logprobs of the likeliest tokens are told.",
    "return_token_offsets": "Leave it out; /tokenize tells the tokens.",
    "return_sampling_mask": _NOT_HERE,
    "stream_interval": "Leave it out: each step's tokens are sent at once.",
    "chat_template": "A template comes from the operator: --chat-template.",
    "guided_decoding_backend": "Leave it out: there is one.",
    "moderation": _NOT_HERE,
    "functions": "Send them as tools.",
    "lora_path": _NOT_HERE,
}
"""Field to what to do instead. null, false, 0 and what is empty are taken, as they ask for nothing."""

LABELS = ("user", "safety_identifier", "prompt_cache_key")
_refused_values = attrgetter(*REFUSED)
_labels = attrgetter(*LABELS)


class RefusedFields(msgspec.Struct, kw_only=True):
    """The fields of `REFUSED`, of any type."""

    prompt_embeds: Any = None
    mm_processor_kwargs: Any = None
    media_io_kwargs: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None
    logits_processors: Any = None
    custom_logit_processor: Any = None
    vllm_xargs: Any = None
    thinking_token_budget: Any = None
    repetition_detection: Any = None
    logprob_token_ids: Any = None
    return_token_offsets: Any = None
    return_sampling_mask: Any = None
    stream_interval: Any = None
    chat_template: Any = None
    guided_decoding_backend: Any = None
    moderation: Any = None
    functions: Any = None
    lora_path: Any = None


class OpenAIFields(RefusedFields, kw_only=True):
    """OpenAI's fields for its own books. They are checked, and change nothing here.

    Attributes:
        user, safety_identifier: of the client's user; not logged.
        prompt_cache_key, prompt_cache_retention, prompt_cache_options: hints. Equal beginnings share pages whatever
            they are called; `cache_salt` keeps them apart.
        metadata: up to 16 texts by name.
        store: nothing is stored.
        service_tier: told back as "default", the only one.
        verbosity, prediction: hints.
    """

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prediction: dict[str, Any] | None = None

    def check_fields(self) -> None:
        """Raises InvalidRequestError: names a field that cannot be acted on, or is out of bounds."""
        if any(_refused_values(self)):
            name = next(name for name in REFUSED if getattr(self, name))
            fix = REFUSED[name]
            raise InvalidRequestError(f"{name} is not supported.", fix=fix, param=name, code="unsupported_value")
        if any(labels := _labels(self)) and max(len(label or "") for label in labels) > MAX_LABEL_CHARS:
            name = next(name for name in LABELS if len(getattr(self, name) or "") > MAX_LABEL_CHARS)
            raise _too_long(name, f"more than {MAX_LABEL_CHARS} characters")
        metadata = self.metadata
        if not metadata:
            return
        if len(metadata) > MAX_METADATA:
            raise _too_long("metadata", f"more than {MAX_METADATA} entries")
        if any(len(key) > MAX_METADATA_KEY_CHARS or len(text) > MAX_LABEL_CHARS for key, text in metadata.items()):
            what = f"a name of more than {MAX_METADATA_KEY_CHARS} characters, or a text of more than {MAX_LABEL_CHARS}"
            raise _too_long("metadata", what)


def _too_long(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} has {what}.", fix="Send less.", param=name)


def banned_words(words: list[str], tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The ids that spell `bad_words`, at the beginning of a text and after a space.

    Raises:
        InvalidRequestError: a word takes several tokens, each of which other words need too; or there are too many.
    """
    if tokenizer is None:
        raise InvalidRequestError("bad_words need a tokenizer.", fix="Use banned_token_ids.", param="bad_words")
    if len(words) > MAX_BAD_WORDS or any(len(word) > MAX_BAD_WORD_CHARS for word in words):
        raise InvalidRequestError(
            f"bad_words are more than {MAX_BAD_WORDS}, or longer than {MAX_BAD_WORD_CHARS} characters.",
            fix="Send fewer or shorter ones.",
            param="bad_words",
        )
    banned: dict[int, None] = {}
    for word in words:
        bare = word.strip()
        forms = [tokenizer.encode(form, False, False) for form in (bare, " " + bare)] if bare else []
        if not forms or any(len(ids) > 1 for ids in forms):
            raise InvalidRequestError(
                f"bad_words cannot have {word[:40]!r}: this model spells it with several tokens.",
                fix="Leave it out, or end the answer there with stop.",
                param="bad_words",
                code="unsupported_value",
            )
        banned |= dict.fromkeys(ids[0] for ids in forms)
    return tuple(banned)
