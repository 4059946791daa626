"""How far a report trusts intervals of so few sequences, at whatever level they are."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.report.findings import confidence_level, how_much_text

LAYERS_GROW = "The layers that a feature affects, and largest values, can only grow with more text."


def of_sequences(*n: int) -> pl.DataFrame:
    return pl.DataFrame({"n_sequences": n})


def at_level(level: float) -> pl.DataFrame:
    return pl.DataFrame({"confidence_level": [level]})


def test_what_was_simulated_is_said_of_16_sequences() -> None:
    found = how_much_text(of_sequences(16, 16), at_level(0.95))
    assert "Each model read 16 sequences: intervals and tests speak of other sequences" in found.sentence
    assert (
        "in simulated texts of 16 sequences, intervals of 95 % held what such texts give on average in 74 % to 91 % of"
        " the cases, least often for counts where each feature varies by itself."
    ) in found.sentence
    assert found.sentence.endswith(LAYERS_GROW)
    assert found.basis == "n = 2 models" and found.is_caveat


@pytest.mark.parametrize(
    ("n", "level", "of"),
    [((3, 3), 0.95, "3 at 95 %"), ((3, 16), 0.95, "3 to 16 at 95 %"), ((16, 16), 0.9, "16 at 90 %")],
)
def test_what_was_not_simulated_is_said_of_others(n: tuple[int, ...], level: float, of: str) -> None:
    found = how_much_text(of_sequences(*n), at_level(level))
    assert f"From so few, an interval is too narrow: by how much was not simulated for {of}." in found.sentence
    assert "of the cases" not in found.sentence
    assert found.sentence.endswith(LAYERS_GROW)


def test_many_sequences_and_no_intervals() -> None:
    assert "too narrow" not in how_much_text(of_sequences(64), at_level(0.95)).sentence
    for nothing in (None, at_level(0.95).clear()):
        assert how_much_text(of_sequences(16), nothing).sentence.endswith("No intervals were computed for this report.")
        assert confidence_level(nothing) is None
