"""One short program for each of the common clients: a chat, its stream, a tool or structured output."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import needs
from tests.conformance.environment import PROGRAMS, unexpected

CLIENTS = ("instructor", "litellm", "llm", "openai_agents", "pydantic_ai")


@pytest.mark.model
def test_common_clients_work(server, clients):
    programs = [f"smoke_{name}.py" for name in CLIENTS]
    cases = clients.pytest(*programs, cwd=PROGRAMS, OCTAVO_URL=server)
    assert not (wrong := unexpected(cases, {})), "\n".join(wrong)
    for name in CLIENTS:
        assert any(f"smoke_{name}." in case.name and case.outcome == "passed" for case in cases), name


@pytest.mark.model
def test_anthropics_own_client_works(server, clients):
    needs(server, "/v1/messages")
    cases = clients.pytest("smoke_anthropic.py", cwd=PROGRAMS, OCTAVO_URL=server)
    assert cases and not (wrong := unexpected(cases, {})), "\n".join(wrong)
