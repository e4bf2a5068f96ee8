"""What listens, and what happens to those who talk nonsense to it."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from octavo.sim import SimOptions
from tests.server.conftest import NO_TLS


class Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.security("A1", "A40")
def test_one_port_on_loopback_and_it_survives_pickles_and_garbage(process_server, tmp_path):
    process, url = process_server()
    (engine,) = psutil.Process(process.pid).children()
    listening = {
        (each.laddr.ip, each.laddr.port)
        for one in (psutil.Process(process.pid), engine)
        for each in one.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }
    host, port = url.removeprefix("http://").split(":")
    assert listening == {("127.0.0.1", int(port))} and host == "127.0.0.1"
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    garbage = bytes(range(256)) * 4096
    for data in (bomb, garbage, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 9\r\n\r\n" + bomb):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except ConnectionError:
                pass
    with httpx.Client(base_url=url, verify=NO_TLS) as client:
        reply = client.post("/v1/completions", content=bomb, headers={"content-type": "application/json"})
        assert reply.status_code == 400
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
    assert not canary.exists() and engine.is_running()


@pytest.mark.security("A1")
def test_the_engines_socket_has_no_name_once_it_is_up(process_server):
    """While it loads, its folder is this user's alone; then nobody can connect any more."""
    process, _ = process_server(sim=SimOptions(startup_seconds=0.5))
    unix = [
        each.laddr
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children())
        for each in one.net_connections("unix")
        if each.laddr
    ]
    assert all(not Path(path).exists() for path in unix if path.startswith("/") and "octavo-" in path)
