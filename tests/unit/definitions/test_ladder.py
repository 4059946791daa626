"""The ladder against its formula, (1 + m/8) * 2**e."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlier_moe.definitions.ladder import HIGHEST_FLOOR, N_EDGES, Ladder, is_edge, nearest_edges
from outlier_moe.errors import StudyError

FORMULA = [(1 + m / 8) * 2.0**e for e in range(-126, 128) for m in range(8)]


def test_the_edges_are_those_of_the_formula() -> None:
    assert [edge for edge in FORMULA if edge >= 3.0][:N_EDGES] == Ladder(floor=3.0).edges.tolist()
    assert all(is_edge(edge) for edge in FORMULA)
    assert Ladder().index(6.0) == 8, "an octave above the floor of 3"


@given(st.floats(width=32))
def test_a_magnitude_is_an_edge_if_the_formula_gives_it(magnitude: float) -> None:
    assert is_edge(magnitude) == (magnitude in FORMULA)


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_the_nearest_edges_stand_on_both_sides(magnitude: float) -> None:
    rounded = float(np.float32(magnitude))
    below, above = nearest_edges(magnitude)
    assert below == max(edge for edge in FORMULA if edge <= rounded)
    assert above == min(edge for edge in FORMULA if edge > rounded)


@pytest.mark.parametrize("floor", [0.0, -3.0, 3.1, math.inf, math.nan, 1e-40, 1e39])
def test_a_floor_off_the_ladder_is_refused(floor: float) -> None:
    with pytest.raises(StudyError, match="not on the ladder"):
        Ladder(floor=floor)


def test_all_edges_are_numbers() -> None:
    edges = Ladder(floor=HIGHEST_FLOOR).edges
    assert np.isfinite(edges).all() and (np.diff(edges) > 0).all()
    with pytest.raises(StudyError, match="beyond what float32 can say"):
        Ladder(floor=1.125 * HIGHEST_FLOOR)


@pytest.mark.parametrize(
    ("magnitude", "says"), [(6.1, "6 and 6.5"), (2.0, "from 3 "), (2e10, "to 1.07374e"), (-6.0, "positive")]
)
def test_a_threshold_that_cannot_be_answered_is_refused(magnitude: float, says: str) -> None:
    magnitude = 1.25 * 2**35 if magnitude == 2e10 else magnitude
    with pytest.raises(StudyError, match=says):
        Ladder(floor=3.0).index(magnitude)
