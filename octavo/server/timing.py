"""The `timing` object of a reply: where each request's time went. Clients ask for it by body or header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octavo.frontend.sample import OpenRequest

HEADER = b"x-octavo-timing"


def wants_timing(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the header asks for it: `x-octavo-timing: 1` or `true`."""
    return headers.get(HEADER, b"").strip().lower() in (b"1", b"true")


def timing(opened: Sequence[OpenRequest]) -> dict[str, list[dict[str, float | int]]]:
    """One entry a prompt, in their order. Times are seconds on the server's clock, to a microsecond."""
    return {"requests": [_entry(request) for request in opened]}


def _entry(request: OpenRequest) -> dict[str, float | int]:
    """Times that never came (an aborted request's first token) are left out."""
    times = request.metrics()
    generated = [len(sample.token_ids) for sample in request.samples]
    entry: dict[str, float | int] = {
        "prompt_tokens": len(request.prompt_token_ids),
        "cached_tokens": request.num_cached_tokens,
        "completion_tokens": sum(generated),
        "total_time": round(times.total_time, 6),
    }
    if request.scheduled_time:
        entry["queue_time"] = round(times.queue_time, 6)
    if request.first_token_time:
        decode = max(0.0, times.total_time - times.time_to_first_token)
        entry["prefill_time"] = round(max(0.0, times.time_to_first_token - times.queue_time), 6)
        entry["time_to_first_token"] = round(times.time_to_first_token, 6)
        entry["decode_time"] = round(decode, 6)
        if max(generated) > 1:
            entry["time_per_output_token"] = round(decode / (max(generated) - 1), 6)
    return entry
