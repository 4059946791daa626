"""From sketches to the rows of a recording's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float64, Int64, UInt16, UInt32

from outlier_moe.definitions.taps import TAPS, VIEWS, View
from outlier_moe.recording.arrow_arrays import arrow_array
from outlier_moe.recording.observer import OutlierRows, TapSketch
from outlier_moe.recording.sketch import SiteSketch
from outlier_moe.tables import schemas
from outlier_moe.tables.files import signed_indices

LAYER_SCHEMA = signed_indices(schemas.LayerOutlier.create_empty().to_arrow().schema)
ANY_LAYER_SCHEMA = signed_indices(schemas.AnyLayerOutlier.create_empty().to_arrow().schema)
NAMES = {"tap": arrow_array(TAPS), "view": arrow_array(list(VIEWS))}
"""What the numbers in the columns that name a place stand for."""

Columns = dict[str, np.ndarray]
"""A part of a table. Frames are made of the whole: making one takes longer than the sketch it is to hold."""


class SiteFigures(NamedTuple):
    """What the small tables need of one (tap, layer) of a chunk; the sketch's rows are not held on to."""

    sites: Columns
    """Columns of `schemas.Site`, the tap as its number in `TAPS`."""
    peaks: Columns
    """Columns of `schemas.Peak` but for the text, the tap likewise."""


class _Rows(NamedTuple):
    """Some rows, one after the other, of one tap or view."""

    of: SiteSketch | OutlierRows
    """The sketch or maximum that they are rows of."""
    chosen: slice
    """Indices of the rows."""
    place: int
    """The number of their tap or view."""

    def column(self, name: str) -> np.ndarray:
        """One of their columns."""
        return getattr(self.of, name)[self.chosen]

    def lengths(self) -> Int64[np.ndarray, " row"]:
        """How many counts each of them has."""
        return np.diff(self.of.offsets[self.chosen.start : self.chosen.stop + 1])

    def counts(self) -> UInt16[np.ndarray, " count"]:
        """Their counts, one row's after the other's."""
        return self.of.n_positions[self.of.offsets[self.chosen.start] : self.of.offsets[self.chosen.stop]]


def _of_sequence(of: SiteSketch | OutlierRows, sequence: int, place: int) -> _Rows:
    start, stop = np.searchsorted(of.sequence, [sequence, sequence + 1])
    return _Rows(of, slice(int(start), int(stop)), place)


def _batch(schema: pa.Schema, parts: Sequence[_Rows], constants: Mapping[str, int], *, place: str) -> pa.RecordBatch:
    """Rows of several taps or views together: each batch is compressed for itself, which takes its time.

    Args:
        schema: Of the table.
        parts: The rows.
        constants: Columns that are the same in all of them.
        place: The column that names the tap or view.
    """
    lengths = np.concatenate([part.lengths() for part in parts])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    counts = np.concatenate([part.counts() for part in parts])
    kind = schema.field(place).type
    codes = np.repeat([part.place for part in parts], [len(part.lengths()) for part in parts])
    columns = {
        "n_positions": pa.LargeListArray.from_arrays(arrow_array(offsets), arrow_array(counts)),
        place: pa.DictionaryArray.from_arrays(
            arrow_array(codes.astype(kind.index_type.to_pandas_dtype())), NAMES[place], ordered=True
        ),
    }
    for name, value in constants.items():
        columns[name] = arrow_array(np.full(len(lengths), value, schema.field(name).type.to_pandas_dtype()))
    for name in schema.names:
        if name not in columns:
            columns[name] = arrow_array(np.concatenate([part.column(name) for part in parts]))
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def layer_batch(layer: int, taps: Sequence[TapSketch], sequence: int, *, first_sequence: int) -> pa.RecordBatch:
    """The rows of `schemas.LayerOutlier` of one layer and one sequence of a chunk, tap after tap."""
    parts = [_of_sequence(sketch, sequence, TAPS.index(tap)) for tap, sketch in taps]
    return _batch(LAYER_SCHEMA, parts, {"layer": layer, "sequence": first_sequence + sequence}, place="tap")


def any_layer_batch(maxima: Mapping[View, OutlierRows], sequence: int, *, first_sequence: int) -> pa.RecordBatch:
    """The rows of `schemas.AnyLayerOutlier` of one sequence of a chunk, view after view."""
    parts = [_of_sequence(rows, sequence, list(VIEWS).index(view)) for view, rows in maxima.items()]
    return _batch(ANY_LAYER_SCHEMA, parts, {"sequence": first_sequence + sequence}, place="view")


def site_figures(
    layer: int,
    tap_sketch: TapSketch,
    tokens: UInt32[np.ndarray, "sequence position"],
    *,
    first_sequence: int,
    n_peaks: int,
) -> SiteFigures:
    """The distribution and the largest features of one (tap, layer) of a chunk.

    Args:
        layer: Zero-based decoder layer.
        tap_sketch: The tap and what was counted there.
        tokens: The whole corpus' tokens.
        first_sequence: The number, in the corpus, of the chunk's first sequence.
        n_peaks: Features kept for each sequence.
    """
    tap, sketch = tap_sketch
    sites = {
        "sequence": first_sequence + np.arange(len(sketch.rms)),
        "rms": sketch.rms,
        "median_magnitude": sketch.median_magnitude,
        "top_magnitude": sketch.top_magnitude,
        "max_median_ratio": _max_median_ratio(sketch),
        "kurtosis_of_feature_rms": sketch.kurtosis_of_feature_rms,
        "excess_kurtosis": sketch.excess_kurtosis,
        "n_nonfinite": sketch.n_nonfinite,
    }
    peaks = _top_features(sketch, tokens, first_sequence=first_sequence, n_peaks=n_peaks)
    place = {"tap": TAPS.index(tap), "layer": layer}
    shape = {"n_positions": tokens.shape[1], "d_model": sketch.n_features}
    return SiteFigures(_filled_up(sites, place | shape), _filled_up(peaks, place))


def _filled_up(columns: Columns, constants: Mapping[str, int]) -> Columns:
    length = len(columns["sequence"])
    return columns | {name: np.full(length, value, np.uint32) for name, value in constants.items()}


def small_table(parts: Iterable[Columns]) -> pl.DataFrame:
    """The whole of a small table: its parts one after the other, the taps by their names, no number as null."""
    parts = list(parts)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return pl.DataFrame(columns, nan_to_null=True).with_columns(pl.col("tap").cast(pl.UInt8).cat.to(schemas.tap_enum))


def _max_median_ratio(sketch: SiteSketch) -> Float64[np.ndarray, " sequence"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sketch.top_magnitude.astype(np.float64) / sketch.median_magnitude
    return np.where(np.isfinite(ratio), ratio, np.nan)


def _top_features(
    sketch: SiteSketch, tokens: UInt32[np.ndarray, "sequence position"], *, first_sequence: int, n_peaks: int
) -> Columns:
    # Primary key first: by sequence, then the largest; of two equal peaks the lower feature, whatever the chunk.
    order = np.lexsort((sketch.feature, -sketch.peak, sketch.sequence))
    starts = np.searchsorted(sketch.sequence, np.arange(len(sketch.rms)))
    rank = np.arange(len(order)) - starts[sketch.sequence[order]]
    order, rank = order[rank < n_peaks], rank[rank < n_peaks]
    sequence = first_sequence + sketch.sequence[order].astype(np.int64)
    position = sketch.peak_position[order]
    return {
        "sequence": sequence,
        "rank": rank,
        "position": position,
        "feature": sketch.feature[order],
        "value": sketch.peak_value[order],
        "token": tokens[sequence, position],
    }
