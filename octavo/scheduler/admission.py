"""What can never run is refused before it waits; what runs begins with what is cached."""

from __future__ import annotations

from octavo.errors import ContextLengthError, InvalidRequestError
from octavo.kv import PagePool
from octavo.request import EngineRequest
from octavo.scheduler.config import SchedulerConfig
from octavo.scheduler.sequence import Sequence


def check_request(request: EngineRequest, config: SchedulerConfig) -> None:
    """Refuse a request that could not run even alone.

    Raises:
        ContextLengthError: the prompt leaves no room for a token, or beams might need more pages than there are.
        InvalidRequestError: more beams than rows.
    """
    length = len(request.prompt_token_ids)
    if not 1 <= length <= config.max_model_len - (0 if request.pooling else 1):
        raise ContextLengthError(
            f"The prompt has {length} tokens; the context holds {config.max_model_len}, output included.",
            fix="Shorten the prompt.",
            param="prompt",
        )
    if request.params.use_beam_search:
        _check_beams(request, config)


def _check_beams(request: EngineRequest, config: SchedulerConfig) -> None:
    width, size, length = request.params.n, config.page_size, len(request.prompt_token_ids)
    if width > config.max_running:
        raise InvalidRequestError(
            f"n cannot be {width}: a step takes {config.max_running} sequences at most.",
            fix="Ask for fewer beams, or raise --max-num-seqs and --max-num-batched-tokens.",
            param="n",
        )
    limit = min(config.max_model_len, length + (request.params.max_tokens or config.max_model_len))
    shared = length // size
    needed = shared + width * (-(-limit // size) - shared)
    if needed > config.num_pages:
        raise ContextLengthError(
            f"{width} beams of {limit} tokens may need {needed} pages; there are {config.num_pages} of {size} tokens.",
            fix="Ask for fewer beams or a smaller max_tokens, or raise --kv-cache-memory-bytes.",
            param="max_tokens",
        )


def cached_pages(sequence: Sequence, pool: PagePool, config: SchedulerConfig) -> list[int]:
    """Indexed pages of its beginning; the last known token is always computed anew, for its logits."""
    if not config.enable_prefix_caching or sequence.needs_all_states:
        return []
    count = (len(sequence.tokens) - 1) // config.page_size
    return pool.find(sequence.extend_digests(sequence.tokens, count, config.page_size))
