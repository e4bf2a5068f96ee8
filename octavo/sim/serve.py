"""`python -m octavo.sim.serve`: the real server over a simulated engine, for tests and benchmarks.

Reads one line of JSON from stdin (`SimServe`), says on stdout where it listens, and serves until it is told to end.
"""

from __future__ import annotations

import sys

import msgspec

from octavo.config import EngineConfig, ServerOptions
from octavo.engine.client import ClientFactory, ProcessClient
from octavo.engine.info import EngineInfo
from octavo.errors import OctavoError
from octavo.server.serve import serve
from octavo.sim.engine import SimOptions


class SimServe(msgspec.Struct, kw_only=True):
    """What to serve."""

    engine: EngineConfig
    server: ServerOptions = ServerOptions(port=0)
    sim: SimOptions = SimOptions()


def sim_client(options: SimOptions) -> ClientFactory:
    """A way to a simulated engine in a process of its own."""
    arguments = [msgspec.json.encode(options).decode()]
    return lambda config: ProcessClient(config, module="octavo.sim", arguments=arguments)


def main() -> int:
    """Serve; returns the exit status."""
    what = msgspec.json.decode(sys.stdin.readline(), type=SimServe)
    try:
        return serve(what.engine, what.server, _announce, client=sim_client(what.sim))
    except OctavoError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _announce(info: EngineInfo, url: str) -> None:
    print(url, flush=True)


if __name__ == "__main__":
    sys.exit(main())
