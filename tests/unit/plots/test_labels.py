"""Names on a picture: none over another, none over a mark, the same from the same input."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float64

from outlier_moe.plots.labels import RULES, PlacedLabel, place_labels, text_width

WIDTH, HEIGHT, SIZE, RADIUS = 320.0, 240.0, 11.0, 5.0
Box = tuple[float, float, float, float]


def box_of(place: PlacedLabel, name: str) -> Box:
    across, down = text_width(name, SIZE) / 2, SIZE * RULES.line_height / 2
    return place.x - across, place.y - down, place.x + across, place.y + down


def overlap(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1e-9 and min(a[3], b[3]) - max(a[1], b[1]) > 1e-9


marks = st.lists(
    st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT), st.text("abcdefghij-.0123456789MW", min_size=1, max_size=16)),
    min_size=1,
    max_size=25,
)


@given(marks=marks)
@settings(max_examples=40)
def test_names_overlap_neither_names_nor_marks(marks: list[tuple[float, float, str]]) -> None:
    x, y = (np.array([mark[k] for mark in marks], np.float64) for k in (0, 1))
    names = [mark[2] for mark in marks]
    places = place_labels(x, y, names, width=WIDTH, height=HEIGHT)
    boxes = [box_of(place, name) for place, name in zip(places, names, strict=True) if place is not None]
    circles = [(a - RADIUS, b - RADIUS, a + RADIUS, b + RADIUS) for a, b, _ in marks]
    for box in boxes:
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT
        assert not any(overlap(box, circle) for circle in circles)
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))


def crowd(seed: int) -> tuple[Float64[np.ndarray, " mark"], Float64[np.ndarray, " mark"]]:
    random = np.random.default_rng(seed)
    return random.uniform(0, WIDTH, 20), random.uniform(0, HEIGHT, 20)


def test_the_same_input_gives_the_same_places() -> None:
    names = [f"model-{k}" for k in range(20)]
    first, second = (place_labels(*crowd(1), names, width=WIDTH, height=HEIGHT) for _ in range(2))
    assert first == second


def test_where_there_is_room_every_mark_is_named() -> None:
    x, y = np.array([60.0, 160.0, 260.0]), np.array([60.0, 120.0, 180.0])
    places = place_labels(x, y, ["a", "b", "c"], width=WIDTH, height=HEIGHT)
    assert all(place is not None and not place.has_leader for place in places)


def test_names_that_do_not_fit_are_left_out() -> None:
    x, y = np.full(30, 40.0), np.full(30, 20.0)
    places = place_labels(x, y, ["a rather long name"] * 30, width=120.0, height=40.0)
    assert sum(place is not None for place in places) < 30


def test_a_mark_without_a_name_needs_no_place_and_is_kept_clear() -> None:
    x, y = np.array([100.0, 125.0]), np.array([100.0, 100.0])
    named, unnamed = place_labels(x, y, ["mixtral", ""], width=WIDTH, height=HEIGHT)
    assert unnamed is None
    assert named is not None
    assert not overlap(box_of(named, "mixtral"), (120.0, 95.0, 130.0, 105.0))


def test_a_bar_is_not_written_over_if_there_is_room() -> None:
    x, y = np.array([100.0]), np.array([100.0])
    bar = np.array([[120.0, 40.0, 120.0, 160.0]])
    (place,) = place_labels(x, y, ["mixtral"], width=WIDTH, height=HEIGHT, bars=bar)
    assert place is not None
    left, _, right, _ = box_of(place, "mixtral")
    assert right <= 120 or left >= 120


@pytest.mark.parametrize(("text", "width"), [("", 0.0), ("i", 2.442), ("W", 10.384), ("mm", 18.326), ("é", 11.165)])
def test_widths_are_those_of_the_font(text: str, width: float) -> None:
    assert text_width(text, SIZE) == pytest.approx(width)
