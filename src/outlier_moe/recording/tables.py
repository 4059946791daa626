"""From sketches to the rows of a recording's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float64, UInt32

from outlier_moe import schemas
from outlier_moe.recording.arrow_arrays import arrow_array
from outlier_moe.recording.observer import OutlierRows, TapSketch
from outlier_moe.recording.sketch import SiteSketch
from outlier_moe.taps import TAPS, VIEWS, View

LAYER_SCHEMA: pa.Schema = schemas.LayerOutlier.create_empty().to_arrow().schema
ANY_LAYER_SCHEMA: pa.Schema = schemas.AnyLayerOutlier.create_empty().to_arrow().schema

_COLUMNS = ("feature", "peak", "peak_position", "first_token_magnitude", "later_peak", "later_peak_position")


Columns = dict[str, np.ndarray]
"""A part of a table. Frames are made of the whole: making one takes longer than the sketch it is to hold."""


class SiteFigures(NamedTuple):
    """What the small tables need of one (tap, layer) of a chunk; the sketch's rows are not held on to."""

    sites: Columns
    """Columns of `schemas.Site`, the tap as its number in `TAPS`."""
    peaks: Columns
    """Columns of `schemas.Peak` but for the text, the tap likewise."""


def _rows_of_sequence(rows: SiteSketch | OutlierRows, sequence: int) -> slice:
    start, stop = np.searchsorted(rows.sequence, [sequence, sequence + 1])
    return slice(int(start), int(stop))


def _counts(rows: SiteSketch | OutlierRows, chosen: slice) -> pa.Array:
    offsets = rows.offsets[chosen.start : chosen.stop + 1]
    values = rows.n_positions[offsets[0] : offsets[-1]]
    return pa.LargeListArray.from_arrays(arrow_array(offsets - offsets[0]), arrow_array(values))


def _constant(name: str, code: int, length: int, categories: Sequence[str], schema: pa.Schema) -> pa.Array:
    kind = schema.field(name).type
    codes = arrow_array(np.full(length, code, kind.index_type.to_pandas_dtype()))
    return pa.DictionaryArray.from_arrays(codes, arrow_array(categories), ordered=True)


def layer_batch(layer: int, tap_sketch: TapSketch, sequence: int, *, first_sequence: int) -> pa.RecordBatch:
    """The rows of `schemas.LayerOutlier` of one (tap, layer) and one sequence of a chunk."""
    tap, sketch = tap_sketch
    chosen = _rows_of_sequence(sketch, sequence)
    length = chosen.stop - chosen.start
    columns = {name: arrow_array(getattr(sketch, name)[chosen]) for name in _COLUMNS}
    columns["n_positions"] = _counts(sketch, chosen)
    columns["tap"] = _constant("tap", TAPS.index(tap), length, TAPS, LAYER_SCHEMA)
    columns["layer"] = arrow_array(np.full(length, layer, np.uint16))
    columns["sequence"] = arrow_array(np.full(length, first_sequence + sequence, np.uint16))
    return pa.record_batch([columns[name] for name in LAYER_SCHEMA.names], schema=LAYER_SCHEMA)


def any_layer_batch(view: View, rows: OutlierRows, sequence: int, *, first_sequence: int) -> pa.RecordBatch:
    """The rows of `schemas.AnyLayerOutlier` of one view and one sequence of a chunk."""
    chosen = _rows_of_sequence(rows, sequence)
    length = chosen.stop - chosen.start
    columns = {name: arrow_array(getattr(rows, name)[chosen]) for name in (*_COLUMNS, "layer")}
    columns["n_positions"] = _counts(rows, chosen)
    columns["view"] = _constant("view", list(VIEWS).index(view), length, list(VIEWS), ANY_LAYER_SCHEMA)
    columns["sequence"] = arrow_array(np.full(length, first_sequence + sequence, np.uint16))
    return pa.record_batch([columns[name] for name in ANY_LAYER_SCHEMA.names], schema=ANY_LAYER_SCHEMA)


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
