"""What the other tests here rely on: clients reach nothing but loopback, and lists of exceptions stay honest."""

from __future__ import annotations

import pytest

from tests.conformance.environment import Case, unexpected


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid"])
def test_a_client_that_reaches_for_the_network_is_found_out(clients, tmp_path, host):
    quietly = (
        f"import contextlib, socket\nwith contextlib.suppress(OSError): socket.create_connection(({host!r}, 80), 1)"
    )
    with pytest.raises(AssertionError, match=host):
        clients.run("-c", quietly, cwd=tmp_path)


def test_lists_of_exceptions_are_strict():
    cases = [Case("a.ok", "passed", ""), Case("a.bad", "failed", "why"), Case("a.skip", "skipped", "")]
    assert unexpected(cases, {"bad": "reason"}) == []
    assert unexpected(cases, {}) == ["a.bad failed: why"]
    assert unexpected(cases, {"bad": "reason", "ok": "reason"}) == ["a.ok passes now: take it from the list"]
    assert unexpected(cases, {"bad": "reason", "gone": "reason"}) == ["no case has 'gone' in its name"]
