"""Connections are taken in bunches, whatever a turn of the event loop costs, and a lack of descriptors passes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time

import pytest
import uvloop

from octavo.server.acceptor import MOST_A_TURN, Acceptor
from octavo.server.serve import listen


class Greeter(asyncio.Protocol):
    """Says "hi" to who comes."""

    def __init__(self, made):
        self.made = made

    def connection_made(self, transport):
        self.made.append(transport)
        transport.write(b"hi")


class Poor:
    """A listening socket whose first takers find no descriptor."""

    def __init__(self, listener, failures, error=errno.EMFILE):
        self._listener, self.failures, self.error = listener, failures, error

    def __getattr__(self, name):
        return getattr(self._listener, name)

    def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(self.error, os.strerror(self.error))
        return self._listener.accept()


def clients(listener, count):
    made = []
    for _ in range(count):
        client = socket.socket()
        client.connect(listener.getsockname())  # the kernel completes it: nobody has to take it yet
        client.settimeout(10)
        made.append(client)
    return made


@pytest.fixture(params=["asyncio", "uvloop"])
def on_loop(request):
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(coroutine)

    return run


def test_slow_turns_still_take_all_who_wait(on_loop):
    """Each turn costs 20 ms here; one connection a turn would take two seconds for the last of them."""
    count = 3 * MOST_A_TURN

    async def main():
        with listen("127.0.0.1", 0) as listener:
            waiting, made = clients(listener, count), []
            acceptor = Acceptor(listener, lambda: Greeter(made))
            turns = 0
            while len(made) < count and turns < count:
                time.sleep(0.02)
                await asyncio.sleep(0)
                turns += 1
            acceptor.close()
            await asyncio.sleep(0.05)
            greetings = [client.recv(2) for client in waiting]
            for each in (*waiting, *made):
                each.close()
            await asyncio.sleep(0.02)
            return turns, greetings

    turns, greetings = on_loop(main())
    assert turns <= count // MOST_A_TURN + 10
    assert greetings == [b"hi"] * count


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOBUFS])
def test_a_lack_of_descriptors_passes(on_loop, error):
    async def main():
        with listen("127.0.0.1", 0) as listener:
            waiting, made = clients(listener, 2), []
            poor = Poor(listener, failures=2, error=error)
            acceptor = Acceptor(poor, lambda: Greeter(made))
            begun = time.monotonic()
            async with asyncio.timeout(10):
                while len(made) < 2:
                    await asyncio.sleep(0.01)
            took = time.monotonic() - begun
            acceptor.close()
            for each in (*waiting, *made):
                each.close()
            await asyncio.sleep(0.02)
            return took, poor.failures

    took, failures = on_loop(main())
    assert failures == 0
    assert took >= 0.3  # two pauses: it does not spin meanwhile


def test_after_the_end_nobody_is_taken_and_others_may(on_loop):
    async def main():
        with listen("127.0.0.1", 0) as listener:
            made, others = [], []
            acceptor = Acceptor(listener, lambda: Greeter(made))
            acceptor.close()
            acceptor.close()
            waiting = clients(listener, 1)
            await asyncio.sleep(0.1)
            assert not made
            second = Acceptor(listener, lambda: Greeter(others))
            async with asyncio.timeout(10):
                while not others:
                    await asyncio.sleep(0.01)
            second.close()
            for each in (*waiting, *others):
                each.close()
            await asyncio.sleep(0.02)

    on_loop(main())
