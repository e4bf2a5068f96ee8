"""Every row of the table is kept by a test, and the page says so."""

from __future__ import annotations

from tests.server_security.page import PAGE, marked, page
from tests.server_security.rows import ROWS


def test_every_class_has_a_test_and_every_marker_a_class():
    rows = {row for row, _, _ in marked()}
    assert rows == set(ROWS)
    assert list(ROWS) == [f"A{number}" for number in range(1, 41)]


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run: python -m tests.server_security.page"
