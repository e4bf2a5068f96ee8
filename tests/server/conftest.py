"""A server over a simulated engine, in a thread with the engine in a process of its own; and one in a process."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import msgspec
import pytest

from octavo.async_llm import AsyncLLM
from octavo.config import EngineConfig, ServerOptions
from octavo.server.app import build_app
from octavo.server.life import HttpServer, uvicorn_config
from octavo.server.serve import listen, url_of
from octavo.sim import SimOptions, write_sim_model
from octavo.sim.serve import SimServe, sim_client
from tests.patience import BUSY

PLAIN, ANY_PORT = SimOptions(), ServerOptions(port=0)
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a real one takes 50 ms to make, and nothing here needs it


def joined(lists):
    return [item for each in lists for item in each]


class Running:
    """A server that runs: its address, its model, its loop (for calls from outside)."""

    def __init__(self, url, llm, app, loop):
        self.url, self.llm, self.app, self.loop = url, llm, app, loop

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=20, verify=NO_TLS, **options)

    def post(self, path, status=200, **body):
        with self.client() as client:
            reply = client.post(path, json=body)
        assert reply.status_code == status, reply.text
        return reply.json()

    def get(self, path, status=200):
        with self.client() as client:
            reply = client.get(path)
        assert reply.status_code == status, reply.text
        return reply

    def stream(self, path, **body):
        """The events of a stream: decoded, without the last, which must be [DONE]."""
        with self.client() as client, client.stream("POST", path, json={**body, "stream": True}) as reply:
            assert reply.status_code == 200, reply.read()
            events = [line[6:] for line in reply.iter_lines() if line]
        assert events[-1] == "[DONE]"
        return [msgspec.json.decode(event) for event in events[:-1]]

    def raw_stream(self, path, **body):
        with self.client() as client, client.stream("POST", path, json={**body, "stream": True}) as reply:
            return reply.read()

    def wait(self, condition, seconds=2.0):
        """Until the condition, of the server's thread, holds."""

        async def look():
            async with asyncio.timeout(seconds * BUSY):
                while not condition():
                    await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(look(), self.loop).result()


@pytest.fixture(scope="session")
def sim_folder(tmp_path_factory):
    return write_sim_model(tmp_path_factory.mktemp("sim"))


@pytest.fixture(scope="session")
def start_server(sim_folder):
    """A context manager: a server in a thread. `sim`, `options` and the rest choose how."""

    @contextmanager
    def start(*, sim=PLAIN, options=ANY_PORT, wait=True, **engine):
        config = EngineConfig.of(model="sim", tokenizer=str(sim_folder), **engine)
        started = threading.Event()
        made = {}

        async def main():
            try:
                await serve_until_stopped()
            except BaseException as error:
                made["error"] = error
            finally:
                started.set()

        async def serve_until_stopped():
            llm = AsyncLLM.of_config(
                config,
                client=sim_client(sim),
                max_logprobs=options.max_logprobs,
                default_max_tokens=options.default_max_tokens,
            )
            app = build_app(llm, options)
            server = HttpServer(uvicorn_config(app))
            listener = listen("127.0.0.1", 0)
            made["running"] = Running(url_of(listener, "127.0.0.1"), llm, app, asyncio.get_running_loop())
            made["stop"] = asyncio.Event()
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            loading = asyncio.create_task(llm.load())
            try:
                if wait:
                    await loading
                started.set()
                await made["stop"].wait()
            finally:
                server.should_exit = True
                loading.cancel()
                await llm.close()
                await asyncio.gather(serving, loading, return_exceptions=True)
                listener.close()

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        started.wait(30)
        if "error" in made:
            raise made["error"]
        try:
            yield made["running"]
        finally:
            made["running"].loop.call_soon_threadsafe(made["stop"].set)
            thread.join(20)
            assert not thread.is_alive()

    return start


@pytest.fixture(scope="module")
def server(start_server):
    """A plain server, which the module's tests share."""
    with start_server() as running:
        yield running


@pytest.fixture
def process_server(sim_folder):
    """Start `octavo.sim.serve` as a process: the function returns (process, url)."""
    processes = []

    def start(*, sim=PLAIN, options=ANY_PORT, ready=True, **engine):
        config = EngineConfig.of(model="sim", tokenizer=str(sim_folder), **engine)
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.sim.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        process.stdin.write(msgspec.json.encode(SimServe(engine=config, server=options, sim=sim)).decode() + "\n")
        process.stdin.flush()
        url = process.stdout.readline().strip() if ready else ""
        return process, url

    yield start
    for process in processes:
        process.kill()
        process.communicate()
