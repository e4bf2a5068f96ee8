"""Where requests are made: short work on the event loop, long work in a thread, new grammars in their own threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from octavo.frontend.inputs import InputProcessor
from octavo.request import SamplingParams

T = TypeVar("T")

LONG_PROMPT = 4096  # characters or ids; what is longer is tokenized off the event loop
_GRAMMAR_THREADS = 4


class OffLoop:
    """Runs the making of requests for one `AsyncLLM`."""

    def __init__(self) -> None:
        self._grammar_threads = ThreadPoolExecutor(_GRAMMAR_THREADS, "octavo-grammar")  # they start when needed

    async def make(self, make: Callable[[], T], size: int) -> T:
        """Short work at once, long work in a thread."""
        return make() if size <= LONG_PROMPT else await asyncio.to_thread(make)

    async def make_guided(self, make: Callable[[], T], size: int, params: SamplingParams, inputs: InputProcessor) -> T:
        """The same; a grammar that is not known yet may take seconds, which no other request shall wait for."""
        spec = params.structured_outputs
        if spec is None or inputs.grammars.knows(spec):
            return await self.make(make, size)
        return await asyncio.get_running_loop().run_in_executor(self._grammar_threads, make)

    def close(self) -> None:
        """Drop what has not begun."""
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)
