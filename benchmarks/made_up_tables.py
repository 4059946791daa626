"""Recordings of models that never ran: as large as asked for, and written fast.

A feature's magnitudes at a site are taken for normal, with a spread of its own; the number of positions that reach an
edge is what such a feature is expected to have. Nothing but speed and looks is to be judged by them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Float32, Float64, Int64
from scipy.special import erfc

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.taps import TAPS, VIEWS, Tap
from outlier_moe.recording.tables import ANY_LAYER_SCHEMA, LAYER_SCHEMA
from outlier_moe.tables import schemas
from outlier_moe.tables.files import seal, with_facts, write_table
from outlier_moe.tables.recording import FORMAT

COMPRESSION = pa.ipc.IpcWriteOptions(compression="zstd")
# As far as the lists of counts go; only the first token's own magnitude lies higher.
MOST_EDGES = 48


@dataclass(frozen=True)
class MadeUpModel:
    """The size of a model and how its activations are spread."""

    name: str
    seed: int
    n_layers: int = 28
    d_model: int = 2048
    n_sequences: int = 16
    n_positions: int = 2048
    spread: float = 1.0
    """Median standard deviation of a feature at a tap that follows a norm."""
    spread_of_features: float = 0.45
    """How unlike the features are: standard deviation of the logarithm."""
    spread_of_sites: float = 0.9
    """How unlike the sites of one feature are."""
    sink: float = 9000.0
    """Magnitude of the first token in three features of the residual stream, in the middle layers."""
    loss_nats: float = 2.5
    n_parameters: int | None = None
    """What the run says; what the size comes to by default."""
    corpus: str = "fa" * 32
    floor: float = 3.0


class _Rows(NamedTuple):
    """The outliers of one site (or of a view's union) in all sequences; arrays of shape [sequence, feature]."""

    counts: Int64[np.ndarray, "sequence feature edge"]
    """Positions after the first that reach each edge."""
    peak: Float32[np.ndarray, "sequence feature"]
    first: Float32[np.ndarray, "sequence feature"]
    later: Float32[np.ndarray, "sequence feature"]


def write_made_up(directory: Path, model: MadeUpModel) -> None:
    """Write a recording's folder."""
    random = np.random.default_rng(model.seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    base = model.spread * np.exp(model.spread_of_features * random.standard_normal(model.d_model))
    depth = np.linspace(0, 1, model.n_layers)
    unions: dict[str, _Rows] = {}
    sites, peaks = [], []
    for layer in range(model.n_layers):
        path = directory / f"layer_{layer:02d}.arrow"
        with pa.ipc.new_file(path, with_facts(LAYER_SCHEMA, Ladder().facts), options=COMPRESSION) as writer:
            for view, taps in VIEWS.items():
                for tap in taps:
                    spread = _site_spread(model, tap, base, float(depth[layer]), random)
                    rows = _rows(model, tap, spread, float(depth[layer]), random)
                    for sequence in range(model.n_sequences):
                        _write(writer, rows, sequence, {"tap": (TAPS.index(tap), TAPS), "layer": layer})
                    unions[view] = _union(unions[view], rows, model.n_positions) if view in unions else rows
                    sites.append(_site(model, tap, layer, spread, rows))
                    peaks.append(_peaks(tap, layer, rows, random))
        seal(path)
    path = directory / "any_layer.arrow"
    with pa.ipc.new_file(path, with_facts(ANY_LAYER_SCHEMA, Ladder().facts), options=COMPRESSION) as writer:
        for view, rows in unions.items():
            for sequence in range(model.n_sequences):
                _write(writer, rows, sequence, {"view": (list(VIEWS).index(view), list(VIEWS)), "layer": 0})
    seal(path)
    key = ["tap", "layer", "sequence"]
    write_table(schemas.Site.validate(pl.concat(sites).sort(key), cast=True), directory / "sites.parquet")
    write_table(schemas.Peak.validate(pl.concat(peaks).sort([*key, "rank"]), cast=True), directory / "peaks.parquet")
    _write_run(directory, model, random)


def _site_spread(
    model: MadeUpModel, tap: Tap, base: Float64[np.ndarray, " feature"], depth: float, random: np.random.Generator
) -> Float64[np.ndarray, " feature"]:
    growth = {"attn_in": 1.0, "mlp_in": 0.8, "residual": 1 + 30 * depth**2, "residual_rms": 0.6}[tap]
    return base * growth * np.exp(model.spread_of_sites * random.standard_normal(model.d_model))


def _rows(
    model: MadeUpModel,
    tap: Tap,
    spread: Float64[np.ndarray, " feature"],
    depth: float,
    random: np.random.Generator,
) -> _Rows:
    edges = Ladder(floor=model.floor).edges[:MOST_EDGES].astype(np.float64)
    expected = model.n_positions * erfc(edges / (spread[:, None] * np.sqrt(2)))
    shape = (model.n_sequences, model.d_model)
    # One deviation for all edges of a row keeps its counts falling from edge to edge.
    deviation = np.exp(0.1 * random.standard_normal(shape))
    counts = np.rint(np.minimum(expected[None] * deviation[..., None], model.n_positions - 1)).astype(np.int64)
    reached = (counts > 0).sum(axis=-1)
    above = np.append(edges, edges[-1] * 1.125)
    later = np.where(reached > 0, edges[reached - 1], 0) + np.where(
        reached > 0, 0.999 * random.random(shape) * (above[reached] - above[reached - 1]), 0
    )
    first = np.abs(random.standard_normal(shape)) * spread
    if tap in ("residual", "residual_rms") and 0.1 < depth < 0.9:
        first[:, [7, 300 % model.d_model, 441 % model.d_model]] += model.sink if tap == "residual" else 22.0
    first = np.minimum(first, above[-1] * 0.99) if tap not in ("residual", "residual_rms") else first
    later, first = later.astype(np.float32), first.astype(np.float32)
    return _Rows(counts, np.maximum(first, later), first, later)


def _union(one: _Rows, other: _Rows, n_positions: int) -> _Rows:
    counts = np.maximum(one.counts, other.counts) + np.minimum(one.counts, other.counts) // 8
    first, later = np.maximum(one.first, other.first), np.maximum(one.later, other.later)
    return _Rows(np.minimum(counts, n_positions - 1), np.maximum(first, later), first, later)


def _write(
    writer: pa.RecordBatchFileWriter, rows: _Rows, sequence: int, constants: dict[str, int | tuple[int, object]]
) -> None:
    ladder = Ladder()
    chosen = np.flatnonzero(rows.peak[sequence] >= ladder.floor)
    peak, first, later = rows.peak[sequence, chosen], rows.first[sequence, chosen], rows.later[sequence, chosen]
    lengths = np.searchsorted(ladder.edges, peak, side="right")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    row = np.repeat(np.arange(len(chosen)), lengths)
    edge = np.arange(offsets[-1]) - offsets[row]
    # Above the edges that are made up only the first token is left.
    counts = rows.counts[sequence, chosen]
    values = np.where(edge < MOST_EDGES, counts[row, np.minimum(edge, MOST_EDGES - 1)], 0)
    values = (values + (first[row] >= ladder.edges[edge])).astype(np.uint16)
    schema = LAYER_SCHEMA if "tap" in constants else ANY_LAYER_SCHEMA
    columns = {
        "sequence": pa.array(np.full(len(chosen), sequence, np.uint16)),
        "feature": pa.array(chosen.astype(np.uint32)),
        "peak": pa.array(peak),
        "peak_position": pa.array(np.where(first >= later, 0, 17).astype(np.uint16)),
        "first_token_magnitude": pa.array(first),
        "later_peak": pa.array(later),
        "later_peak_position": pa.array(np.full(len(chosen), 17, np.uint16)),
        "n_positions": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)),
    }
    for name, value in constants.items():
        if isinstance(value, tuple):
            kind = schema.field(name).type
            codes = pa.array(np.full(len(chosen), value[0]), type=kind.index_type)
            words = pa.array(list(value[1]), type=kind.value_type)  # type: ignore[call-overload]
            columns[name] = pa.DictionaryArray.from_arrays(codes, words, ordered=True)
        else:
            columns[name] = pa.array(np.full(len(chosen), value, np.uint16))
    writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))


def _site(
    model: MadeUpModel, tap: Tap, layer: int, spread: Float64[np.ndarray, " feature"], rows: _Rows
) -> pl.DataFrame:
    mean_square = spread**2
    return pl.DataFrame({"sequence": range(model.n_sequences)}).with_columns(
        tap=pl.lit(tap, schemas.tap_enum),
        layer=pl.lit(layer),
        rms=pl.lit(float(np.sqrt(mean_square.mean()))),
        median_magnitude=pl.lit(float(0.6745 * np.median(spread))),
        top_magnitude=pl.Series(rows.peak.max(axis=1)),
        max_median_ratio=pl.Series(rows.peak.max(axis=1) / (0.6745 * np.median(spread))),
        kurtosis_of_feature_rms=pl.lit(float((mean_square**2).mean() / mean_square.mean() ** 2)),
        excess_kurtosis=pl.lit(float(3 * (mean_square**2).mean() / mean_square.mean() ** 2 - 3)),
        n_nonfinite=pl.lit(0),
        n_positions=pl.lit(model.n_positions),
        d_model=pl.lit(model.d_model),
    )


_WORDS = [" the", ".", "\n", ",", " of", " a", ":", "<|im_start|>", " and", "The"]


def _peaks(tap: Tap, layer: int, rows: _Rows, random: np.random.Generator) -> pl.DataFrame:
    top = np.argsort(-rows.peak, axis=1)[:, :8]
    n_sequences = len(top)
    value = np.take_along_axis(rows.peak, top, axis=1)
    is_first = np.take_along_axis(rows.first, top, axis=1) >= value
    position = np.where(is_first, 0, random.integers(1, 2048, top.shape))
    token = random.integers(0, len(_WORDS), top.shape)
    return pl.DataFrame(
        {
            "sequence": np.repeat(np.arange(n_sequences), 8),
            "rank": np.tile(np.arange(8), n_sequences),
            "position": position.ravel(),
            "feature": top.ravel(),
            "value": value.ravel(),
            "token": token.ravel(),
            "text": [_WORDS[word] for word in token.ravel()],
        }
    ).with_columns(tap=pl.lit(tap, schemas.tap_enum), layer=pl.lit(layer))


def _write_run(directory: Path, model: MadeUpModel, random: np.random.Generator) -> None:
    losses = model.loss_nats + 0.05 * random.standard_normal(model.n_sequences)
    sequences = pl.DataFrame({"sequence": range(model.n_sequences), "loss_nats": losses})
    table = sequences.with_columns(n_tokens=pl.lit(model.n_positions))
    write_table(schemas.Sequence.validate(table, cast=True), directory / "sequences.parquet")
    run = {
        "format": FORMAT,
        "model": model.name,
        "mode": "made up",
        "floor": model.floor,
        "taps": list(TAPS),
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "n_sequences": model.n_sequences,
        "sequence_length": model.n_positions,
        "n_parameters": model.n_parameters or 12 * model.n_layers * model.d_model**2 + 50_000 * model.d_model,
        "n_embedding_parameters": 50_000 * model.d_model,
        "dtype": "bfloat16",
        "tokens": {"corpus_sha256": model.corpus},
        "versions": {"outlier_moe": "0.1.0"},
    }
    (directory / "run.json").write_text(json.dumps(run, indent=1) + "\n")
