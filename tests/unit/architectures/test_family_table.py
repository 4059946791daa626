"""The page of families; `test_families.py` holds each line of its table against a run of the family."""

from __future__ import annotations

from tests import zoo
from tests.family_table import PAGE, page


def test_the_page_of_families_is_up_to_date() -> None:
    written = PAGE.read_text()
    rows = [line for line in written.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in rows] == list(zoo.ZOO)
    assert written == page(rows), "run `python -m tests.family_table` and read what has changed"
