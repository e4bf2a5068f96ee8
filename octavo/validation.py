"""The one validator behind every entrance: what passes here cannot harm the engine or another request.

Every check names the value, says why it cannot be, and what to do. Types are checked too: a `SamplingParams` built in
Python may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.grammar.bounds import check_structured_outputs
from octavo.request import SamplingParams

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024  # of one stop string
MAX_STOP_CHARS_IN_ALL = 4096
MAX_STOP_TOKEN_IDS = 128
MAX_KEPT = 64  # control tokens that stay in the text
MAX_LOGIT_BIASES = 1024
MAX_PRIORITY = 2**31 - 1

_CACHE_SALT = re.compile(r"[A-Za-z0-9_-]{0,128}")
_REQUEST_ID = re.compile(r"[\w.:-]{1,256}", re.ASCII)

FLOATS: dict[str, tuple[float, float, bool]] = {  # lowest, highest, whether the lowest is excluded
    "temperature": (0.0, 2.0, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "repetition_penalty": (0.0, 100.0, True),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "length_penalty": (-10.0, 10.0, False),
}
_BOOLEANS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "detokenize", "use_beam_search")


def validate_params(
    params: SamplingParams,
    *,
    vocab_size: int,
    max_model_len: int,
    max_logprobs: int,
    eos_token_ids: Sequence[int] = (),
    has_tokenizer: bool = True,
) -> None:
    """Check every field of sampling parameters.

    Args:
        vocab_size: width of the logits; ids must be below it.
        max_model_len: longest sequence; `max_tokens` above it can never be met.
        max_logprobs: most top logprobs a request may ask for.
        eos_token_ids: of the model; `min_tokens` keeps them away.
        has_tokenizer: without one there is no text, so no stop strings.

    Raises:
        InvalidRequestError: names the first field that cannot be.
    """
    if not isinstance(params, SamplingParams):
        _refuse("params", params, "it is no SamplingParams", "Build octavo.SamplingParams(...).")
    _integer("n", params.n, 1, MAX_N)
    for name, (low, high, open_below) in FLOATS.items():
        _number(name, getattr(params, name), low, high, open_below)
    _integer("top_k", params.top_k, -1, 2**31 - 1, "0 or -1 keeps all tokens")
    _lengths(params, max_model_len)
    if params.seed is not None:
        _integer("seed", params.seed, -(2**63), 2**63 - 1)
    for name in _BOOLEANS:
        if not isinstance(getattr(params, name), bool):
            _refuse(name, getattr(params, name), "it is neither true nor false", "Send a boolean.")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(params, name) is not None:
            _integer(name, getattr(params, name), 0, max_logprobs, "the server's --max-logprobs sets the bound")
    _stop_strings(params, has_tokenizer)
    kept: Any = params.kept_special_tokens
    if not isinstance(kept, tuple | list) or len(kept) > MAX_KEPT or not all(isinstance(each, str) for each in kept):
        _refuse("kept_special_tokens", kept, f"it is no tuple of at most {MAX_KEPT} strings", "Name control tokens.")
    _ids("stop_token_ids", params.stop_token_ids, vocab_size, MAX_STOP_TOKEN_IDS)
    _logit_bias(params.logit_bias, vocab_size)
    _choices(params, vocab_size, eos_token_ids)
    _beams(params, vocab_size, eos_token_ids)
    if params.structured_outputs is not None:
        check_structured_outputs(params.structured_outputs)


def validate_prompt(token_ids: Sequence[int], vocab_size: int, max_model_len: int, *, answers: bool = True) -> None:
    """Check a prompt's token ids; at least one token must be left to generate if it is to be answered.

    Raises:
        InvalidRequestError: there are none, or one is no id of the model.
        ContextLengthError: there are too many.
    """
    if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Sequence):
        _refuse("prompt", token_ids, "it is no list of token ids", "Send a list of integers.")
    if not token_ids:
        raise InvalidRequestError(
            "The prompt is empty: it has no tokens, so there is nothing to go on from.",
            fix="Send at least one token.",
            param="prompt",
        )
    check_prompt_length(len(token_ids), max_model_len, answers=answers)
    if set(map(type, token_ids)) != {int}:
        bad = next(token_id for token_id in token_ids if type(token_id) is not int)
        _refuse("prompt", bad, f"a token id is an integer, not a {type(bad).__name__}", "Send a list of integers.")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        _refuse("prompt", bad, "there is no such token id", f"This model's ids are 0 to {vocab_size - 1}.")


def check_prompt_length(num_tokens: int, max_model_len: int, *, answers: bool = True) -> None:
    """Raises ContextLengthError: a prompt of that many tokens is too long, or leaves no room for an answer."""
    if num_tokens > max_model_len - answers:
        raise ContextLengthError(
            f"The prompt has {num_tokens} tokens; the model's context is {max_model_len} tokens, prompt and output "
            "together.",
            fix=f"Shorten the prompt to at most {max_model_len - answers} tokens, or start the server with a larger "
            "--max-model-len if the model has it.",
            param="prompt",
        )


def resolve_max_tokens(
    params: SamplingParams, num_prompt_tokens: int, max_model_len: int, default: int | None = None
) -> int:
    """How many tokens a request may generate: as asked for, else `default`, else (or if it is less) what fits.

    Raises:
        ContextLengthError: prompt and requested output are longer than the context.
        InvalidRequestError: `min_tokens` is more than the context leaves.
    """
    room = max_model_len - num_prompt_tokens
    if params.max_tokens is not None and params.max_tokens > room:
        raise ContextLengthError(
            f"The prompt has {num_prompt_tokens} tokens and max_tokens asks for {params.max_tokens} more, "
            f"{num_prompt_tokens + params.max_tokens} in all; the model's context is {max_model_len}.",
            fix=f"Set max_tokens to at most {room}, or shorten the prompt.",
            param="max_tokens",
        )
    if params.min_tokens > room:
        _refuse("min_tokens", params.min_tokens, f"the context leaves {room} tokens", "Ask for fewer.")
    if params.max_tokens is not None:
        return params.max_tokens
    return room if default is None else min(room, max(default, params.min_tokens))


def validate_routing(*, cache_salt: Any = "", priority: Any = 0, request_id: Any = "-") -> None:
    """Check what rides along with a request and ends up in keys, queues and logs."""
    if not isinstance(cache_salt, str) or not _CACHE_SALT.fullmatch(cache_salt):
        _refuse("cache_salt", cache_salt, "a salt is up to 128 of A-Z, a-z, 0-9, _ and -", "Send one, or none.")
    _integer("priority", priority, -MAX_PRIORITY - 1, MAX_PRIORITY)
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        _refuse("request_id", request_id, "an id is up to 256 letters, digits, _ . : and -", "Send one, or none.")


def _lengths(params: SamplingParams, max_model_len: int) -> None:
    _integer("min_tokens", params.min_tokens, 0, max_model_len, "the model's context is the bound")
    if params.max_tokens is None:
        return
    _integer("max_tokens", params.max_tokens, 1, 2**31 - 1)
    if params.min_tokens > params.max_tokens:
        _refuse("min_tokens", params.min_tokens, f"max_tokens is {params.max_tokens}", "Make it at most that.")


def _stop_strings(params: SamplingParams, has_tokenizer: bool) -> None:
    stops = params.stop
    if not isinstance(stops, tuple | list):
        _refuse("stop", stops, "it is no list of strings", 'Send strings, as ["\\n\\n"].')
    if len(stops) > MAX_STOP_STRINGS:
        _refuse("stop", stops, f"at most {MAX_STOP_STRINGS} strings are taken", "Send fewer.", f"{len(stops)} strings")
    for stop in stops:
        if not isinstance(stop, str):
            _refuse("stop", stop, f"a stop string is text, not a {type(stop).__name__}", "Send strings.")
        if not stop:
            _refuse("stop", stop, "the empty string is in every text", "Leave it out.")
        if len(stop) > MAX_STOP_CHARS:
            reason = f"it has {len(stop)} characters, more than {MAX_STOP_CHARS}"
            _refuse("stop", stop, reason, "Send a shorter one.", repr(stop[:20] + "…"))
    if sum(map(len, stops)) > MAX_STOP_CHARS_IN_ALL:
        reason = f"they have more than {MAX_STOP_CHARS_IN_ALL} characters in all"
        _refuse("stop", stops, reason, "Send fewer or shorter ones.", f"{len(stops)} strings")
    if stops and not (has_tokenizer and params.detokenize):
        reason = "there is no text to look for it in" + ("" if has_tokenizer else ": the server has no tokenizer")
        _refuse("stop", stops[0], reason, "Use stop_token_ids, or set detokenize to true.")


def _logit_bias(biases: dict[int, float] | None, vocab_size: int) -> None:
    if biases is None:
        return
    if not isinstance(biases, dict):
        _refuse("logit_bias", biases, "it is no object from token ids to numbers", 'Send one like {"42": -100}.')
    if len(biases) > MAX_LOGIT_BIASES:
        _refuse("logit_bias", biases, f"at most {MAX_LOGIT_BIASES} are taken", "Send fewer.", f"{len(biases)} entries")
    _ids("logit_bias", tuple(biases), vocab_size, MAX_LOGIT_BIASES)
    for token_id, bias in biases.items():
        _number(f"logit_bias[{token_id}]", bias, -100.0, 100.0)


def _choices(params: SamplingParams, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
    """Allowed and banned ids: in range, and something is left to choose from."""
    allowed, banned = params.allowed_token_ids, params.banned_token_ids
    _ids("banned_token_ids", banned, vocab_size, vocab_size)
    if allowed is not None:
        _ids("allowed_token_ids", allowed, vocab_size, vocab_size)
    kept_away = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)} if params.min_tokens else set()
    if _leaves_none(allowed, set(banned), vocab_size):
        name = "banned_token_ids" if allowed is None else "allowed_token_ids"
        _refuse(name, getattr(params, name), "no token is left to choose", "Ban fewer ids, or allow more.")
    if kept_away and _leaves_none(allowed, kept_away.union(banned), vocab_size):
        reason = "until then only ids that end the answer are left to choose, and it keeps those away"
        _refuse("min_tokens", params.min_tokens, reason, "Set it to 0, or allow more ids.")


def _leaves_none(allowed: Sequence[int] | None, barred: set[int], vocab_size: int) -> bool:
    return len(barred) >= vocab_size if allowed is None else barred.issuperset(allowed)


_NOT_WITH_BEAMS: dict[str, Any] = {
    "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0,
    "frequency_penalty": 0, "logit_bias": None, "allowed_token_ids": None, "banned_token_ids": (), "stop": (),
    "structured_outputs": None,
}  # fmt: skip
"""What draws or changes a token has no place in a search for the most likely ones; neutral values are taken."""


def _beams(params: SamplingParams, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
    """Beam search ranks by the model's own logprobs, and its answers are known at the end only."""
    early = params.early_stopping
    if not isinstance(early, bool) and early != "never":
        _refuse("early_stopping", early, 'it is neither true, false nor "never"', "Send one of them.")
    if not params.use_beam_search:
        return
    for name, neutral in _NOT_WITH_BEAMS.items():
        value = getattr(params, name)
        if value != neutral and value and not (name == "top_k" and value == -1):
            reason = f"beam search takes none (its neutral value is {neutral!r})"
            fix = "Use stop_token_ids." if name == "stop" else "Leave it out, or set use_beam_search to false."
            raise InvalidRequestError(
                f"{name} cannot be {_brief(value)}: {reason}.", fix=fix, param=name, code="unsupported_value"
            )
    stops = len({*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)})
    if params.n + stops > vocab_size:
        reason = f"the model has {vocab_size} tokens, {stops} of which end an answer"
        _refuse("n", params.n, reason, "Ask for fewer beams.")


def _ids(name: str, values: Any, vocab_size: int, most: int) -> None:
    if not isinstance(values, tuple | list):
        _refuse(name, values, "it is no list of token ids", "Send a list of integers.")
    if len(values) > most:
        _refuse(name, values, f"at most {most} are taken", "Send fewer.", f"{len(values)} ids")
    for value in values:
        if type(value) is not int or not 0 <= value < vocab_size:
            _refuse(name, value, "there is no such token id", f"This model's ids are 0 to {vocab_size - 1}.")


def _integer(name: str, value: Any, low: int, high: int, why: str = "") -> None:
    if type(value) is not int or not low <= value <= high:
        reason = f"it must be an integer from {low} to {high}" + (f" ({why})" if why else "")
        _refuse(name, value, reason, "Choose one in that range.")


def _number(name: str, value: Any, low: float, high: float, open_below: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (open_below and value == low):  # NaN is in no range
        range_ = f"above {low:g} and at most {high:g}" if open_below else f"from {low:g} to {high:g}"
        _refuse(name, value, f"it must be a number {range_}", "Choose one in that range.")


def _refuse(name: str, value: Any, reason: str, fix: str, shown: str | None = None) -> NoReturn:
    """Raise; `shown` replaces the value where that is long or beside the point."""
    shown = _brief(value) if shown is None else shown
    raise InvalidRequestError(f"{name} cannot be {shown}: {reason}.", fix=fix, param=name.partition("[")[0])


def _brief(value: Any) -> str:
    try:
        text = repr(value[:60] if isinstance(value, str) else value)
    except ValueError:  # an integer of thousands of digits
        return "a giant number"
    return text if len(text) <= 64 else text[:60] + "…"
