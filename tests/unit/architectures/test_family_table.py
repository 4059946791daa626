from __future__ import annotations

from tests.family_table import PAGE, lines


def test_the_page_of_families_is_up_to_date() -> None:
    assert PAGE.read_text() == "".join(lines()), "run `python -m tests.family_table` and read what has changed"
