"""The ladder: the grid of magnitudes on which counts are exact.

Eight edges to an octave, `(1 + m/8) * 2**e`. The edge at or below a float is its sign-less top bits (exponent and three
bits of mantissa), so that finding it is a shift of the bit pattern and `count(|x| >= edge)` is exact in float32,
bfloat16 and float16 alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32

from outlier_moe.errors import StudyError

MANTISSA_BITS = 3
FLOAT32_SHIFT = 23 - MANTISSA_BITS
# A step is kept as one uint8 per (token, feature); 0 stands for "below the floor".
N_EDGES = 255
SMALLEST_EDGE = 2.0**-126
LARGEST_EDGE = 1.875 * 2.0**127
# All edges above it are numbers of float32.
HIGHEST_FLOOR = 2.0**96


def _bits(magnitude: float) -> int:
    return int(np.float32(magnitude).view(np.uint32))


def _edge_of_bits(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def is_edge(magnitude: float) -> bool:
    """Whether a magnitude lies on the ladder: positive, normal in float32, at most four significant bits."""
    return (
        _is_normal(magnitude)
        and float(np.float32(magnitude)) == magnitude
        and _bits(magnitude) % (1 << FLOAT32_SHIFT) == 0
    )


def _is_normal(magnitude: float) -> bool:
    return math.isfinite(magnitude) and SMALLEST_EDGE <= magnitude <= LARGEST_EDGE


def nearest_edges(magnitude: float) -> tuple[float, float]:
    """The edges at or below and above a positive magnitude."""
    below = _bits(magnitude) >> FLOAT32_SHIFT << FLOAT32_SHIFT
    return _edge_of_bits(below), _edge_of_bits(below + (1 << FLOAT32_SHIFT))


@dataclass(frozen=True)
class Ladder:
    """The edges from a floor upwards: 255 of them, 32 octaves.

    A magnitude's step is 0 below the floor and `k + 1` from the k-th edge to the next. The last edge stands for all
    that lies above it as well (1.1e10 for a floor of 3).
    """

    floor: float = 3.0
    """The lowest edge recorded, in units of the activations."""

    def __post_init__(self) -> None:
        if not is_edge(self.floor):
            raise off_ladder(self.floor, key="floor")
        if self.floor > HIGHEST_FLOOR:
            raise StudyError(
                "A floor is so high that the ladder above it would end beyond what float32 can say.",
                key="floor",
                expected=f"at most {HIGHEST_FLOOR:g}",
                got=self.floor,
            )

    @cached_property
    def edges(self) -> Float32[np.ndarray, " edge"]:
        """All edges, ascending from the floor; `edges[k]` is what `n_positions[k]` counts."""
        first = _bits(self.floor)
        steps = np.arange(N_EDGES, dtype=np.uint32) << np.uint32(FLOAT32_SHIFT)
        return (np.uint32(first) + steps).view(np.float32)

    @property
    def facts(self) -> dict[str, Any]:
        """The ladder's floor and edges, for a table's metadata."""
        return {"floor": self.floor, "edges": self.edges.tolist()}

    @property
    def floor_rung(self) -> int:
        """The floor's float32 bit pattern without its 20 lowest bits."""
        return _bits(self.floor) >> FLOAT32_SHIFT

    def index(self, magnitude: float, *, key: str = "magnitude", file: str | None = None) -> int:
        """The k for which `edges[k] == magnitude`.

        Raises:
            StudyError: If the magnitude is no edge or lies below the floor.
        """
        if not is_edge(magnitude):
            raise off_ladder(magnitude, key=key, file=file)
        k = (_bits(magnitude) >> FLOAT32_SHIFT) - self.floor_rung
        if not 0 <= k < N_EDGES:
            raise StudyError(
                "A threshold lies outside the recorded range of magnitudes.",
                file=file,
                key=key,
                expected=f"an edge from {self.floor:g} (the floor recorded) to {self.edges[-1]:g}",
                got=magnitude,
                remedy="Take a threshold in that range, or record again with a lower record_outliers.floor.",
            )
        return k


def off_ladder(magnitude: float, *, key: str, file: str | None = None) -> StudyError:
    """The error for a magnitude that is no edge, with the nearest edges named."""
    expected = "a positive finite magnitude, such as 6.0"
    remedy = None
    if _is_normal(magnitude):
        below, above = nearest_edges(magnitude)
        expected = "an edge of the ladder, (1 + m/8) * 2**e with m from 0 to 7"
        remedy = f"The nearest edges are {below:g} and {above:g}."
    return StudyError(
        "A magnitude is not on the ladder, so that counts at it would not be exact.",
        file=file,
        key=key,
        expected=expected,
        got=magnitude,
        remedy=remedy,
    )
