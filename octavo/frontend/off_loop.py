"""Where requests are made: short work on the event loop, long work in a thread, new grammars in their own threads.

Work on texts for its own sake (counting tokens) has two threads of its own, so that nothing that
the engine is to do waits for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from octavo.errors import DeadlineError, OverloadedError
from octavo.frontend.caller import CALLER
from octavo.frontend.inputs import InputProcessor
from octavo.request import SamplingParams

T = TypeVar("T")

LONG_PROMPT = 4096  # characters or ids; what is longer is tokenized off the event loop
_GRAMMAR_THREADS = 4
_TEXT_THREADS = 2
MAX_TEXTS = 32  # long texts that are worked on or wait for it


class OffLoop:
    """Runs the making of requests for one `AsyncLLM`."""

    def __init__(self) -> None:
        self._grammar_threads = ThreadPoolExecutor(_GRAMMAR_THREADS, "octavo-grammar")  # they start when needed
        self._text_threads = ThreadPoolExecutor(_TEXT_THREADS, "octavo-text")
        self._num_texts = 0

    async def make(self, make: Callable[[], T], size: int) -> T:
        """Short work at once, long work in a thread."""
        return make() if size <= LONG_PROMPT else await asyncio.to_thread(make)

    async def make_guided(self, make: Callable[[], T], size: int, params: SamplingParams, inputs: InputProcessor) -> T:
        """The same; a grammar that is not known yet may take seconds, which no other request shall wait for."""
        spec = params.structured_outputs
        if spec is None or inputs.grammars.knows(spec):
            return await self.make(make, size)
        return await asyncio.get_running_loop().run_in_executor(self._grammar_threads, make)

    async def text(self, work: Callable[[], T], size: int, gone: Callable[[], Awaitable[None]]) -> T | None:
        """Short work at once, long work in one of two threads; None if nobody waits for it any more.

        Args:
            gone: returns when the client has hung up.

        Raises:
            OverloadedError: too much of it waits.
            DeadlineError: the caller's time was up before.
        """
        if size <= LONG_PROMPT:
            return work()
        if self._num_texts >= MAX_TEXTS:
            raise OverloadedError("There are too many long texts to tokenize.", retry_after=2.0, fix="Try again soon.")
        remaining = CALLER.get().deadline - time.monotonic()
        self._num_texts += 1
        future = asyncio.get_running_loop().run_in_executor(self._text_threads, work)
        leaving = asyncio.ensure_future(gone())
        try:
            timeout = None if remaining == math.inf else max(0.0, remaining)
            waited: set[asyncio.Future[Any]] = {future, leaving}
            await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if leaving.done():
                return None
            raise DeadlineError("The text took longer than it may.", fix="Send less of it, or allow more time.")
        finally:
            self._num_texts -= 1
            future.cancel()
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    def close(self) -> None:
        """Drop what has not begun."""
        self._text_threads.shutdown(wait=False, cancel_futures=True)
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)
