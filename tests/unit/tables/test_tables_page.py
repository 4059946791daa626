"""The documentation's page of tables says what every column means, and is up to date."""

from __future__ import annotations

from tests.tables_page import PAGE, lines


def test_the_documentation_has_todays_tables() -> None:
    assert PAGE.read_text() == "".join(lines()), "run `python -m tests.tables_page`"
