"""Where the names of marks go, so that no two of them and no mark overlap; the same input gives the same picture.

Each name takes, of many places around its mark, the cheapest that is free: near its mark, nearer to it than to another,
clear of the intervals' bars and of other names' lines. The most crowded marks choose first; then all choose again,
knowing where the others are. A name without a free place is left out (its tooltip remains). `report/assets/labels.js`
does the same in a browser, where a picture may have any width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

# Widths of Arial and Liberation Sans (and, but for hairs, Helvetica) in thousandths of the font size, from ' ' to '~'.
_WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278"
    " 278 584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722"
    " 667 944 667 667 611 278 278 278 469 556 333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556"
    " 556 333 500 278 556 500 722 500 500 500 334 260 334 584"
)


class LabelRules(NamedTuple):
    """What decides where a name goes; what a place costs is in pixels of distance from the mark that it is worth."""

    advance: tuple[int, ...] = tuple(int(width) for width in _WIDTHS.split())
    """The width of each letter from ' ' to '~'."""
    widest: int = 1015
    gaps: tuple[float, ...] = (5.0, 11.0, 19.0, 29.0, 42.0, 58.0, 78.0, 102.0)
    """Distances between a mark's edge and its name, in pixels."""
    angles: tuple[float, ...] = tuple(22.5 * step for step in range(16))
    """Directions in degrees, clockwise from the right."""
    leader_from: float = 12.0
    """Names further than this from their mark are tied to it by a line."""
    rounds: int = 3
    off_the_axes: float = 2.0
    over_a_line: float = 36.0
    leader_over_a_line: float = 24.0
    leader_over_a_box: float = 60.0
    nearer_to_another: float = 60.0
    clearly: float = 8.0
    """By how many pixels a name is to be nearer to its own mark than to others."""
    line_height: float = 1.15
    padding: float = 1.5


RULES = LabelRules()


class PlacedLabel(NamedTuple):
    """Where a name goes."""

    x: float
    """The middle of the text, in pixels from the left."""
    y: float
    """The middle of the text, in pixels from the top."""
    has_leader: bool
    """Whether a line ties it to its mark."""
    leader_x: float
    """The end of that line at the text."""
    leader_y: float


def text_width(text: str, size: float) -> float:
    """The width of a text in pixels; letters outside ASCII are taken to be as wide as the widest inside."""
    codes = [ord(letter) - 32 for letter in text]
    return sum(RULES.advance[code] if 0 <= code < len(RULES.advance) else RULES.widest for code in codes) * size / 1000


Boxes = Float64[np.ndarray, "_box 4"]
"""Left, top, right, bottom, y downwards."""
Lines = Float64[np.ndarray, "_line 4"]
"""From one point to another: x, y, x, y."""


def place_labels(
    x: Float64[np.ndarray, " mark"],
    y: Float64[np.ndarray, " mark"],
    names: list[str],
    *,
    width: float,
    height: float,
    bars: Lines | None = None,
    size: float = 11.0,
    radius: float = 5.0,
    dearest: float = np.inf,
) -> list[PlacedLabel | None]:
    """A place for each mark's name that overlaps no other name and no mark; None where there is none.

    Args:
        x: The marks' middles, in pixels from the left.
        y: The marks' middles, in pixels from the top.
        names: Their names; an empty one needs no place.
        width: The picture's width in pixels.
        height: The picture's height in pixels.
        bars: Lines that names better not cross.
        size: The font's size in pixels.
        radius: Half the marks' size in pixels.
        dearest: What a place may cost; a name for which all cost more is left out.
    """
    marks = np.stack([x, y], axis=1)
    bars = np.empty((0, 4)) if bars is None else bars
    places: dict[int, _Place] = {}
    for _ in range(RULES.rounds):
        for mark in _most_crowded_first(marks):
            if not names[mark]:
                continue
            half = (text_width(names[mark], size) / 2 + RULES.padding, size * RULES.line_height / 2)
            others = [place for other, place in places.items() if other != mark]
            taken = np.array([place.box for place in others]).reshape(-1, 4)
            leaders = np.array([place.leader for place in others if place.has_leader]).reshape(-1, 4)
            lines = np.concatenate([bars, leaders])
            chosen = _cheapest(
                _candidates(marks[mark], half, radius), mark, marks, taken, lines, (width, height), radius
            )
            if chosen is not None:
                places[mark] = chosen
    places = {mark: place for mark, place in places.items() if place.cost <= dearest}
    return [_placed(places[mark]) if mark in places else None for mark in range(len(names))]


class _Place(NamedTuple):
    box: Float64[np.ndarray, " 4"]
    leader: Float64[np.ndarray, " 4"]
    has_leader: bool
    cost: float


def _placed(place: _Place) -> PlacedLabel:
    left, top, right, bottom = place.box.tolist()
    return PlacedLabel((left + right) / 2, (top + bottom) / 2, place.has_leader, *place.leader[2:].tolist())


def _most_crowded_first(marks: Float64[np.ndarray, "mark 2"]) -> list[int]:
    apart = np.abs(marks[:, None] - marks[None])
    crowd = ((apart[..., 0] < 90) & (apart[..., 1] < 30)).sum(axis=1)
    return sorted(range(len(marks)), key=lambda mark: (-int(crowd[mark]), mark))


class _Candidates(NamedTuple):
    boxes: Boxes
    leaders: Lines
    has_leader: Float64[np.ndarray, " _box"]
    cost: Float64[np.ndarray, " _box"]


def _candidates(at: Float64[np.ndarray, " 2"], half: tuple[float, float], radius: float) -> _Candidates:
    """Boxes around a mark, the nearest first, and what each costs on an empty picture."""
    gap = np.repeat(RULES.gaps, len(RULES.angles))
    angle = np.radians(np.tile(RULES.angles, len(RULES.gaps)))
    cosine, sine = np.cos(angle), np.sin(angle)
    across = at[0] + cosine * (radius + gap) + half[0] * np.clip(2 * cosine, -1, 1)
    down = at[1] + sine * (radius + gap) + half[1] * np.clip(2 * sine, -1, 1)
    boxes = np.stack([across - half[0], down - half[1], across + half[0], down + half[1]], axis=1)
    end_x, end_y = np.clip(at[0], boxes[:, 0], boxes[:, 2]), np.clip(at[1], boxes[:, 1], boxes[:, 3])
    leaders = np.stack([np.full_like(end_x, at[0]), np.full_like(end_y, at[1]), end_x, end_y], axis=1)
    # Right and left of a mark read best, then above and below.
    cost = gap + RULES.off_the_axes * np.tile(
        [(0, 3, 2, 3, 1, 3, 2, 3)[step % 8] for step in range(len(RULES.angles))], len(RULES.gaps)
    )
    return _Candidates(boxes, leaders, (gap >= RULES.leader_from).astype(np.float64), cost)


def _cheapest(
    candidates: _Candidates,
    mark: int,
    marks: Float64[np.ndarray, "mark 2"],
    taken: Boxes,
    lines: Lines,
    picture: tuple[float, float],
    radius: float,
) -> _Place | None:
    boxes, leaders, has_leader, cost = candidates
    edges = np.concatenate([marks - radius, marks + radius], axis=1)
    inside = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2] <= picture[0]) & (boxes[:, 3] <= picture[1])
    free = inside & ~_overlap(boxes, np.concatenate([edges, taken])).any(axis=1)
    if not free.any():
        return None
    other_marks = np.delete(marks, mark, axis=0)
    own, others = _distance(boxes, marks[mark][None])[:, 0], _distance(boxes, other_marks).min(axis=1, initial=np.inf)
    obstacles = np.concatenate([np.delete(edges, mark, axis=0), taken])
    cost = (
        cost
        + RULES.over_a_line * _line_in_box(lines, boxes).sum(axis=0)
        + has_leader * RULES.leader_over_a_box * _line_in_box(leaders, obstacles).sum(axis=1)
        + has_leader * RULES.leader_over_a_line * _lines_cross(leaders, lines).sum(axis=1)
        + RULES.nearer_to_another * (others < own + RULES.clearly)
    )
    best = int(np.argmin(np.where(free, cost, np.inf)))
    return _Place(boxes[best], leaders[best], bool(has_leader[best]), float(cost[best]))


def _overlap(boxes: Boxes, others: Boxes) -> Bool[np.ndarray, "_box _other"]:
    a, b = boxes[:, None], others[None]
    return (a[..., 0] < b[..., 2]) & (b[..., 0] < a[..., 2]) & (a[..., 1] < b[..., 3]) & (b[..., 1] < a[..., 3])


def _distance(boxes: Boxes, points: Float64[np.ndarray, "_point 2"]) -> Float64[np.ndarray, "_box _point"]:
    outside = [
        np.maximum(np.maximum(boxes[:, None, k] - points[None, :, k], points[None, :, k] - boxes[:, None, k + 2]), 0)
        for k in (0, 1)
    ]
    return np.hypot(*outside)


def _line_in_box(lines: Lines, boxes: Boxes) -> Bool[np.ndarray, "_line _box"]:
    """Whether each line passes through each box (Liang and Barsky's clipping)."""
    enter, leave = np.zeros((len(lines), len(boxes))), np.ones((len(lines), len(boxes)))
    for k in (0, 1):
        start, step = lines[:, None, k], (lines[:, k + 2] - lines[:, k])[:, None]
        low, high = boxes[None, :, k] - start, boxes[None, :, k + 2] - start
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.stack([low / step, high / step])
        is_parallel = np.broadcast_to(step == 0, enter.shape)
        is_between = (low < 0) & (high > 0)
        enter = np.maximum(enter, np.where(is_parallel, np.where(is_between, 0, np.inf), ratios.min(axis=0)))
        leave = np.minimum(leave, np.where(is_parallel, np.where(is_between, 1, -np.inf), ratios.max(axis=0)))
    return enter < leave


def _lines_cross(lines: Lines, others: Lines) -> Bool[np.ndarray, "_line _other"]:
    """Whether two lines cross between their ends."""

    def side(a: Lines, b: Lines, k: int) -> Float64[np.ndarray, "_a _b"]:
        start, step = a[:, None, :2], a[:, None, 2:] - a[:, None, :2]
        to = b[None, :, k : k + 2] - start
        return step[..., 0] * to[..., 1] - step[..., 1] * to[..., 0]

    apart = side(lines, others, 0) * side(lines, others, 2) < 0
    return apart & (side(others, lines, 0) * side(others, lines, 2) < 0).T
