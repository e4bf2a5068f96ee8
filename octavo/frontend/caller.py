"""On whose behalf a request is made. An entrance sets it once; `AsyncLLM.submit`, which all pass, applies it.

It travels in a context variable, so that a new entrance cannot forget to hand it on.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what holds for all that they ask.

    Attributes:
        tenant: name of the API key; requests of different ones share the engine fairly. "" is everybody.
        cache_secret: requests of callers with different secrets share no cached pages; b"" leaves salts as they are.
        deadline: `time.monotonic()` at which what is still open is ended with a `DeadlineError`.
        max_waiting: requests of the tenant that may wait; None is as many as the engine takes.
    """

    tenant: str = ""
    cache_secret: bytes = b""
    deadline: float = math.inf
    max_waiting: int | None = None

    def salt(self, cache_salt: str) -> str:
        """The salt of the prefix cache for a client's own salt: HMAC-SHA256 under the caller's secret, in hex."""
        if not self.cache_secret:
            return cache_salt
        return hmac.new(self.cache_secret, cache_salt.encode(), hashlib.sha256).hexdigest()


ANYBODY = Caller()
CALLER: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)
