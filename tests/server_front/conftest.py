"""The servers of tests/server, for these tests too."""

from __future__ import annotations

from tests.server.conftest import process_server, sim_folder

__all__ = ["process_server", "sim_folder"]
