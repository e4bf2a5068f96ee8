"""Imported by every Python of the clients' environment: nothing but loopback can be reached, or asked of a resolver.

Who tries is written down, as some would never tell: environment.py fails the test.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _check(host: Any) -> None:
    try:
        local = host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        with open(os.path.join(os.environ["HOME"], "reached-for.txt"), "a") as file:
            file.write(f"{host}\n")
        raise OSError(f"a client under test wants to reach {host!r}")


def _checked(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(address[0])
        return connect(self, address)

    return guarded


def _resolve(host: Any, *arguments: Any, **options: Any) -> Any:
    _check(host.decode() if isinstance(host, bytes) else host)
    return _getaddrinfo(host, *arguments, **options)


socket.socket.connect = _checked(_connect)  # type: ignore[method-assign]
socket.socket.connect_ex = _checked(_connect_ex)  # type: ignore[method-assign]
socket.getaddrinfo = _resolve
