"""The servers of tests/server, for these tests too."""

from __future__ import annotations

from tests.server.conftest import process_server, server, sim_folder, start_server

__all__ = ["process_server", "server", "sim_folder", "start_server"]
