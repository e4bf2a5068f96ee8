"""One line of log for each exchange: what was asked for, how it ended, how long it took. Never what was said."""

from __future__ import annotations

import logging
import time
from typing import Any

from octavo.server.http import Exchange

logger = logging.getLogger("octavo.access")

_PROBES = frozenset(("/live", "/startup", "/ready", "/metrics", "/version"))


def log_access(exchange: Exchange, route: str) -> None:
    """Log an exchange that has ended, at "info"; probes at "debug".

    Args:
        route: one of a closed set; the path itself is the client's and stays out.
    """
    level = logging.DEBUG if route in _PROBES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, Any] = {
        "request_id": exchange.request_id,
        "method": exchange.method if exchange.method in ("GET", "POST", "HEAD", "DELETE") else "other",
        "route": route,
        "status": exchange.status,
        "seconds": round(time.monotonic() - exchange.begun, 6),
    }
    opened = exchange.opened
    if opened:
        samples = [sample for request in opened for sample in request.samples]
        first = [request.first_token_time for request in opened if request.first_token_time]
        scheduled = [request.scheduled_time for request in opened if request.scheduled_time]
        fields["prompt_tokens"] = sum(len(request.prompt_token_ids) for request in opened)
        fields["cached_tokens"] = sum(request.num_cached_tokens for request in opened)
        fields["completion_tokens"] = sum(len(sample.token_ids) for sample in samples)
        fields["finish_reasons"] = ",".join(sorted({sample.finish_reason or "open" for sample in samples}))
        if scheduled:
            fields["queue_seconds"] = round(max(0.0, min(scheduled) - opened[0].arrival_time), 6)
        if first:
            fields["first_token_seconds"] = round(min(first) - opened[0].arrival_time, 6)
    logger.log(level, "request", extra={"fields": fields})
