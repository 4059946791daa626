"""The sketch from its definitions: slow loops that are plainly right."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8

from outlier_moe.definitions.ladder import Ladder


@dataclass
class PlainRow:
    """One feature of one sequence."""

    sequence: int
    feature: int
    peak: float
    peak_position: int
    peak_value: float
    first_token_magnitude: float
    later_peak: float
    later_peak_position: int
    n_positions: list[int]


@dataclass
class PlainSketch:
    """All that a sketch says."""

    rows: list[PlainRow] = field(default_factory=list)
    rms: list[float] = field(default_factory=list)
    median_magnitude: list[float] = field(default_factory=list)
    top_magnitude: list[float] = field(default_factory=list)
    kurtosis_of_feature_rms: list[float] = field(default_factory=list)
    excess_kurtosis: list[float] = field(default_factory=list)
    n_nonfinite: list[int] = field(default_factory=list)


def divided_by_token_rms(x: Float32[np.ndarray, "position feature"]) -> Float32[np.ndarray, "position feature"]:
    y = x.copy()
    for p, token in enumerate(x):
        squares = [float(value) ** 2 for value in token if math.isfinite(value)]
        rms = np.float32(math.sqrt(math.fsum(squares) / len(squares))) if squares else np.float32(0)
        for f, value in enumerate(token):
            if math.isfinite(value):
                y[p, f] = value / rms if rms > 0 else np.float32(0)
    return y


def plain_steps(x: Float32[np.ndarray, "*shape"], ladder: Ladder) -> UInt8[np.ndarray, "*shape"]:
    steps = np.zeros(x.shape, np.uint8)
    for at, value in np.ndenumerate(x):
        if math.isfinite(value):
            steps[at] = sum(bool(abs(value) >= edge) for edge in ladder.edges)
    return steps


def plain_row(s: int, f: int, values: Float32[np.ndarray, " position"], ladder: Ladder) -> PlainRow | None:
    magnitudes = [float(abs(value)) if math.isfinite(value) else 0.0 for value in values]
    peak, later = max(magnitudes), max(magnitudes[1:], default=0.0)
    if peak < ladder.floor:
        return None
    peak_position = magnitudes.index(peak)
    return PlainRow(
        sequence=s,
        feature=f,
        peak=peak,
        peak_position=peak_position,
        peak_value=float(values[peak_position]),
        first_token_magnitude=magnitudes[0],
        later_peak=later,
        later_peak_position=magnitudes.index(later, 1) if later > 0 else 0,
        n_positions=[sum(m >= edge for m in magnitudes) for edge in ladder.edges.tolist() if edge <= peak],
    )


def kurtosis_of_feature_rms(x: Float32[np.ndarray, "position feature"]) -> float:
    finite = [[float(value) ** 2 for value in feature if math.isfinite(value)] for feature in x.T]
    mean_squares = [math.fsum(squares) / len(squares) for squares in finite if squares]
    mean = math.fsum(mean_squares) / max(1, len(mean_squares))
    if mean == 0:
        return math.nan
    return math.fsum((m / mean) ** 2 for m in mean_squares) / len(mean_squares)


def excess_kurtosis(values: list[float]) -> float:
    exact = [Fraction(value) for value in values]
    if len(set(exact)) < 2:
        return math.nan
    mean = sum(exact) / len(exact)
    distances = [value - mean for value in exact]
    variance = sum(distance**2 for distance in distances) / len(exact)
    return float(sum(distance**4 for distance in distances) / len(exact) / variance**2) - 3


def plain_sketch(x: Float32[np.ndarray, "sequence position feature"], ladder: Ladder) -> PlainSketch:
    sketch = PlainSketch()
    for s, sequence in enumerate(x):
        rows = [plain_row(s, f, sequence[:, f], ladder) for f in range(sequence.shape[1])]
        sketch.rows += [row for row in rows if row is not None]
        finite = [float(value) for value in sequence.flat if math.isfinite(value)]
        magnitudes = sorted(abs(value) for value in finite)
        n = len(finite)
        sketch.rms.append(math.sqrt(math.fsum(m**2 for m in magnitudes) / n) if n else 0.0)
        sketch.median_magnitude.append(magnitudes[(n - 1) // 2] if n else 0.0)
        sketch.top_magnitude.append(max(magnitudes, default=0.0))
        sketch.kurtosis_of_feature_rms.append(kurtosis_of_feature_rms(sequence))
        sketch.excess_kurtosis.append(excess_kurtosis(finite))
        sketch.n_nonfinite.append(sequence.size - n)
    return sketch
