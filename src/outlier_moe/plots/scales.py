"""From values to pixels and back, as Vega does it, so that names can be placed before a picture is drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from outlier_moe.tables.titles import ScaleKind

FAR_FROM_ZERO = 2 / 3
"""Share of a symlog axis that may stay empty below the smallest number."""

_POWERS = range(-6, 13)
_DECADES = [10.0**power for power in _POWERS]
_LOG_TICKS = [value * 10.0**power for power in _POWERS for value in (1, 2, 5)]
_SYMLOG_TICKS = [0, *(value * 10.0**power for power in range(7) for value in (1, 3))]
_FINER_TICKS = [value * 10.0**power for power in _POWERS for value in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)]
TICKS: dict[str, list[tuple[int, list[float]]]] = {
    "log": [(3, _DECADES), (3, _LOG_TICKS), (0, _FINER_TICKS)],
    "symlog": [(4, [0, *_DECADES[6:]]), (3, _SYMLOG_TICKS), (3, _LOG_TICKS), (0, _FINER_TICKS)],
}
"""Ticks of an axis that is no linear one: decades, where that many of them lie on it, else finer ones."""


def ticks_of(kind: ScaleKind, domain: tuple[float, float]) -> list[float] | None:
    """Where an axis is ticked; None leaves it to Vega."""
    if kind == "linear":
        return None
    for least, ticks in TICKS[kind]:
        within = [float(tick) for tick in ticks if domain[0] <= tick <= domain[1]]
        if len(within) >= least:
            return within
    return []


class PixelScale(NamedTuple):
    """One axis of a picture."""

    kind: ScaleKind
    """How values are spread; symlog is linear around 0 and logarithmic beyond 1."""
    domain: tuple[float, float]
    """The values at its ends."""
    pixels: tuple[float, float]
    """The pixels at its ends."""

    def to_pixels(self, values: Float64[np.ndarray, " _n"]) -> Float64[np.ndarray, " _n"]:
        """Where values lie."""
        low, high = _spread(np.array(self.domain), self.kind)
        return self.pixels[0] + (_spread(values, self.kind) - low) / (high - low) * (self.pixels[1] - self.pixels[0])

    def to_value(self, pixel: float) -> float:
        """What lies at a pixel."""
        low, high = _spread(np.array(self.domain), self.kind)
        return self.unspread(low + (pixel - self.pixels[0]) / (self.pixels[1] - self.pixels[0]) * (high - low))

    def unspread(self, spread: float) -> float:
        """The value that the axis' kind spreads to a number."""
        match self.kind:
            case "log":
                return float(np.exp(spread))
            case "symlog":
                return float(np.sign(spread) * np.expm1(abs(spread)))
            case _:
                return float(spread)


def _spread(values: Float64[np.ndarray, " _n"], kind: ScaleKind) -> Float64[np.ndarray, " _n"]:
    match kind:
        case "log":
            return np.log(values)
        case "symlog":
            return np.sign(values) * np.log1p(np.abs(values))
        case _:
            return np.asarray(values, np.float64)


def domain_of(
    values: Float64[np.ndarray, " _n"], kind: ScaleKind, *, room: float = 0.14, from_zero: bool = True
) -> tuple[float, float]:
    """The values at an axis' ends: all values and some room.

    Args:
        values: What is shown.
        kind: How values are spread.
        room: Share of the axis left free at an end.
        from_zero: Whether the axis starts at 0; a logarithmic one never does, nor a symlog one of large numbers that
            are much alike, which would lie on top of each other.
    """
    if not len(values):
        return (1.0, 10.0) if kind == "log" else (0.0, 1.0)
    spread = _spread(values, kind)
    low, high = float(spread.min()), float(spread.max())
    is_far = kind == "symlog" and low > FAR_FROM_ZERO * high
    if is_far:
        low, high = low - max(room * (high - low), 0.5), high + max(room * (high - low), 0.5)
    elif kind != "log" and from_zero:
        low, high = 0.0, high * (1 + room) or float(_spread(np.array([1.0]), kind)[0])
    else:
        # One value alone gets room as well: a decade, or a tenth of itself.
        alone = 1.2 if kind == "log" else abs(high) * 0.1 or 1.0
        margin = max(room * (high - low), 0.12 if kind == "log" else 0.0) if high > low else alone
        low, high = low - margin, high + margin
    scale = PixelScale(kind, (1.0, 2.0), (0.0, 1.0))
    return (0.0 if from_zero and kind != "log" and not is_far else scale.unspread(low)), scale.unspread(high)
