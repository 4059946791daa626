"""Layers and positions affected by every feature at every edge, in one pass over a recording's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64, UInt8

from outlier_moe.definitions.ladder import FLOAT32_SHIFT, N_EDGES, Ladder
from outlier_moe.definitions.presets import LEAST_LAYER_FRACTION, LEAST_POSITION_FRACTION, CountShape
from outlier_moe.definitions.taps import VIEWS
from outlier_moe.judging.rule import Least, is_systematic
from outlier_moe.tables.recording import Recording


@dataclass(frozen=True)
class EdgeCounts:
    """What each unit (feature, or feature in one sequence) affects, at every edge from the floor.

    The axis of length two is "first token included", "first token excluded". Units that reach the least fractions at no
    edge are left out, and the edges end where no unit does.
    """

    shape: CountShape
    """What is counted, and over what."""
    floor: float
    """The lowest edge."""
    d_model: int
    """Features of the residual stream."""
    whole_layers: int
    """What a layer fraction is taken over: decoder layers or sites."""
    whole_positions: tuple[int, int]
    """What a position fraction is taken over."""
    least_layers: float
    """The least layer fraction that these counts can be held against."""
    least_positions: float
    """The least position fraction that these counts can be held against."""
    feature: Int64[np.ndarray, " unit"]
    """Whose counts they are; once for each sequence where sequences are judged alone."""
    peak: Float32[np.ndarray, "first_token=2 unit"]
    """The largest |x| over the view's sites."""
    n_layers: Int64[np.ndarray, "first_token=2 unit edge"]
    """Layers (or sites) affected."""
    n_positions: Int64[np.ndarray, "first_token=2 unit edge"]
    """Positions affected at any site of the view."""

    @property
    def n_kept(self) -> Int64[np.ndarray, " unit"]:
        """At how many edges from the floor a unit reaches the least fractions; above, it never does."""
        return _reaching(self.n_layers, self.n_positions, self).sum(axis=1)


class _Wholes(NamedTuple):
    whole_layers: int
    whole_positions: tuple[int, int]
    least_layers: float
    least_positions: float


def _reaching(
    n_layers: Int64[np.ndarray, "first_token=2 unit edge"],
    n_positions: Int64[np.ndarray, "first_token=2 unit edge"],
    wholes: EdgeCounts | _Wholes,
) -> np.ndarray:
    # Without the first token there is less to count, and less to take the fraction of.
    least = Least(wholes.least_layers, wholes.least_positions)
    return is_systematic(n_layers[0] / wholes.whole_layers, n_positions[0] / wholes.whole_positions[1], least)


def count_at_edges(
    recording: Recording,
    shape: CountShape,
    *,
    least_layers: float = LEAST_LAYER_FRACTION,
    least_positions: float = LEAST_POSITION_FRACTION,
) -> EdgeCounts:
    """Count the layers and positions that each unit affects at every edge of the recording's ladder.

    Args:
        recording: The tables.
        shape: What to count, and over what.
        least_layers: The least layer fraction that will be asked for.
        least_positions: The least position fraction that will be asked for.
    """
    run, pooled = recording.run, shape.unit == "feature"
    n_sequences = run["n_sequences"]
    n_units = run["d_model"] * (1 if pooled else n_sequences)
    whole_layers = run["n_layers"] * (len(VIEWS[shape.view]) if shape.layers == "sites" else 1)
    whole = n_sequences if pooled else 1
    positions = (run["sequence_length"] * whole, (run["sequence_length"] - 1) * whole)
    wholes = _Wholes(whole_layers, positions, least_layers, least_positions)

    n_positions = _positions(recording, shape, n_units)
    # Beyond the last edge that enough positions reach nothing can be systematic: no need to count layers there.
    enough = (n_positions[0] / positions[1] >= least_positions).any(axis=0)
    n_edges = int(enough.sum())
    n_positions = n_positions[:, :, :n_edges]
    n_layers, peak = _layers(recording, shape, n_units, n_edges)
    kept = np.flatnonzero(_reaching(n_layers, n_positions, wholes).any(axis=1))
    return EdgeCounts(
        shape=shape,
        floor=run["floor"],
        d_model=run["d_model"],
        whole_layers=whole_layers,
        whole_positions=positions,
        least_layers=least_layers,
        least_positions=least_positions,
        feature=kept // (1 if pooled else n_sequences),
        peak=peak[:, kept],
        n_layers=n_layers[:, kept],
        n_positions=n_positions[:, kept],
    )


def _steps(magnitude: pl.Series, ladder: Ladder) -> UInt8[np.ndarray, " row"]:
    """How many edges a magnitude reaches: its top bits, counted from the floor's."""
    bits = magnitude.cast(pl.Float32).to_numpy().view(np.uint32) >> np.uint32(FLOAT32_SHIFT)
    return np.clip(bits.astype(np.int64) - ladder.floor_rung + 1, 0, N_EDGES).astype(np.uint8)


def _units(rows: pl.DataFrame, shape: CountShape, n_sequences: int) -> Int64[np.ndarray, " row"]:
    feature = rows["feature"].to_numpy().astype(np.int64)
    if shape.unit == "feature":
        return feature
    return feature * n_sequences + rows["sequence"].to_numpy()


def _positions(recording: Recording, shape: CountShape, n_units: int) -> Int64[np.ndarray, "first_token=2 unit edge"]:
    rows = (
        recording.any_layer_outliers()
        .filter(pl.col("view") == shape.view)
        .select("sequence", "feature", "first_token_magnitude", "n_positions")
        .collect()
    )
    lengths = rows["n_positions"].list.len().to_numpy().astype(np.int64)
    n_edges = int(lengths.max(initial=0))
    unit = _units(rows, shape, recording.run["n_sequences"])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    counts = rows["n_positions"].explode(empty_as_null=False).to_numpy()
    edge = np.arange(len(counts)) - np.repeat(starts[:-1], lengths)
    cell = np.repeat(unit, lengths) * n_edges + edge
    included = np.bincount(cell, weights=counts, minlength=n_units * n_edges).reshape(n_units, n_edges)
    # Where position 0 reaches an edge it is one of the positions counted there.
    first = _reached_by(unit, _steps(rows["first_token_magnitude"], recording.ladder), n_units, n_edges)
    return np.stack([included.astype(np.int64), included.astype(np.int64) - first])


def _reached_by(
    unit: Int64[np.ndarray, " row"], steps: UInt8[np.ndarray, " row"], n_units: int, n_edges: int
) -> Int64[np.ndarray, "unit edge"]:
    """How many of a unit's rows reach each edge."""
    cell = unit * (n_edges + 1) + np.minimum(steps, n_edges)
    ends = np.bincount(cell, minlength=n_units * (n_edges + 1)).reshape(n_units, n_edges + 1)
    return ends[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]


class _Layers(NamedTuple):
    n_layers: Int64[np.ndarray, "first_token=2 unit edge"]
    peak: Float32[np.ndarray, "first_token=2 unit"]


def _layers(recording: Recording, shape: CountShape, n_units: int, n_edges: int) -> _Layers:
    taps = VIEWS[shape.view]
    n_layers = recording.run["n_layers"]
    rows = (
        recording.layer_outliers()
        .filter(pl.col("tap").is_in(taps))
        .select("layer", "sequence", "feature", "peak", "later_peak", site=_site(shape, n_layers))
        .collect()
    )
    unit = _units(rows, shape, recording.run["n_sequences"])
    n_sites = n_layers * (len(taps) if shape.layers == "sites" else 1)
    place = rows["site"].to_numpy().astype(np.int64)
    counts, peaks = [], []
    for column in ("peak", "later_peak"):
        # The largest step of each unit at each layer says up to which edge the layer is affected.
        highest = np.zeros((n_sites, n_units), np.uint8)
        np.maximum.at(highest, (place, unit), _steps(rows[column], recording.ladder))
        everywhere = np.broadcast_to(np.arange(n_units), highest.shape)
        counts.append(_reached_by(everywhere.ravel(), highest.ravel(), n_units, n_edges))
        peak = np.zeros(n_units, np.float32)
        np.maximum.at(peak, unit, rows[column].to_numpy())
        peaks.append(peak)
    return _Layers(np.stack(counts), np.stack(peaks))


def _site(shape: CountShape, n_layers: int) -> pl.Expr:
    if shape.layers == "decoder_layers":
        return pl.col("layer").cast(pl.UInt32)
    number = pl.lit(0, pl.UInt32)
    for index, tap in enumerate(VIEWS[shape.view]):
        number = pl.when(pl.col("tap") == tap).then(pl.lit(index * n_layers, pl.UInt32)).otherwise(number)
    return number + pl.col("layer")
