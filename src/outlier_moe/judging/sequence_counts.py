"""What each sequence of a recording counts at every edge, so that no threshold has to read the recording's tables.

A recording has a row for each tap, layer, sequence and feature, with a list of counts. All that judging features at a
threshold takes of them is whether a layer is affected (one ladder step a row), how many positions and values are at
each edge (summed over the sites of a view), and the peaks: a tenth of the bytes, and of those only one edge is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int64, UInt8

from outlier_moe.definitions.ladder import FLOAT32_SHIFT, N_EDGES, Ladder
from outlier_moe.definitions.taps import VIEW_OF, VIEWS, View
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.rule import is_massive
from outlier_moe.tables.files import check_table, made_again, write_table
from outlier_moe.tables.recording import Recording
from outlier_moe.tables.schemas import tap_enum, view_enum

_ROWS_OF_A_GROUP = 1 << 16
_PEAK_COLUMNS = ("view", "sequence", "feature", "peak", "later_peak")
Side = Literal["", "later_"]
"""Of all positions, or of those after the first."""
SIDES: tuple[Side, ...] = get_args(Side)
Steps = dict[tuple[str, int], UInt8[np.ndarray, "sequence feature"]]


class Counted(NamedTuple):
    """Per (sequence, feature) that reaches an edge at any site of a view."""

    sequence: Int64[np.ndarray, " row"]
    feature: Int64[np.ndarray, " row"]
    n_positions: Mapping[Side, Int64[np.ndarray, " row"]]
    n_values: Mapping[Side, Int64[np.ndarray, " row"]]


class Peaks(NamedTuple):
    """Per (sequence, feature) above the floor at any site of a view: the largest |x|."""

    sequence: Int64[np.ndarray, " row"]
    feature: Int64[np.ndarray, " row"]
    peak: Mapping[Side, Float32[np.ndarray, " row"]]


@dataclass(frozen=True)
class SequenceCounts:
    """The tables of one model; what is read is kept, since presets share it."""

    directory: Path
    """Their folder."""

    def counts(self, view: View, edge: int) -> Counted:
        """What reaches an edge.

        Args:
            view: The taps counted together.
            edge: Its index on the ladder, from the floor.
        """
        if edge not in self._at_edges:
            rows = self._read("counts", pl.col("edge") == edge)
            self._at_edges[edge] = {view: _counted(of_view) for view, of_view in _by_view(rows).items()}
        return self._at_edges[edge][view]

    def steps(self, side: Side, taps: Iterable[str]) -> Steps:
        """Per (tap, layer): how many edges every feature's peak reaches in each sequence.

        Args:
            side: Of all peaks, or of those after the first token.
            taps: The taps looked at.
        """
        chosen = set(taps)
        return {place: steps for place, steps in self._steps[side].items() if place[0] in chosen}

    def peaks(self, view: View) -> Peaks:
        """The peaks over a view's sites."""
        return self._peaks[view]

    def massive(self) -> pl.DataFrame:
        """The rows that could be massive by one of the study's presets, with their hidden state's median magnitude."""
        return self._massive

    @cached_property
    def _at_edges(self) -> dict[int, dict[View, Counted]]:
        """The counts of all views at the edges asked for so far."""
        return {}

    @cached_property
    def _steps(self) -> dict[Side, Steps]:
        rows = self._read("steps")
        places = list(zip(rows["tap"].cast(pl.String).to_list(), rows["layer"].to_list(), strict=True))
        d_model = int(rows["d_model"][0]) if len(rows) else 0
        steps: dict[Side, Steps] = {}
        for side in SIDES:
            arrays = [np.frombuffer(step, np.uint8).reshape(-1, d_model) for step in rows[f"{side}step"].to_list()]
            steps[side] = dict(zip(places, arrays, strict=True))
        return steps

    @cached_property
    def _peaks(self) -> dict[View, Peaks]:
        found = {}
        for view, rows in _by_view(self._read("peaks")).items():
            peak: dict[Side, Float32[np.ndarray, " row"]] = {side: rows[f"{side}peak"].to_numpy() for side in SIDES}
            found[view] = Peaks(*_places(rows), peak)
        return found

    @cached_property
    def _massive(self) -> pl.DataFrame:
        return self._read("massive")

    def _read(self, name: str, *chosen: pl.Expr) -> pl.DataFrame:
        path = self.directory / f"{name}.parquet"
        try:
            check_table(path, remedy=made_again(self.directory))
            return pl.scan_parquet(path, glob=False).filter(*chosen, True).collect()
        except (FileNotFoundError, pl.exceptions.PolarsError) as error:
            raise StudyError(
                "A model's counts by sequence cannot be read.",
                file=path,
                expected="a whole table",
                got=str(error).splitlines()[0] if path.exists() else "no file",
                remedy=f"Remove its folder and run: snakemake {self.directory}",
            ) from error


def _by_view(rows: pl.DataFrame) -> dict[View, pl.DataFrame]:
    return {view: rows.filter(pl.col("view") == view) for view in VIEWS}


def _places(rows: pl.DataFrame) -> tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " row"]]:
    return rows["sequence"].to_numpy().astype(np.int64), rows["feature"].to_numpy().astype(np.int64)


def _counted(rows: pl.DataFrame) -> Counted:
    def by_side(name: str) -> dict[Side, Int64[np.ndarray, " row"]]:
        all_of_them, first = (rows[column].to_numpy().astype(np.int64) for column in (name, f"first_{name}"))
        return {"": all_of_them, "later_": all_of_them - first}

    return Counted(*_places(rows), by_side("n_positions"), by_side("n_values"))


def write_sequence_counts(recording: Recording, massive: list[Preset], directory: Path) -> None:
    """Count a recording by sequence.

    Args:
        recording: Its tables.
        massive: The presets that judge by peaks alone: what could be massive by one of them is kept.
        directory: The folder to make.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pooled = {view: _Pooled.of(recording, view) for view in VIEWS if set(VIEWS[view]) & set(recording.run["taps"])}
    steps, candidates = [], []
    for rows in _layers(recording):
        for (tap, layer), of_site in rows.group_by("tap", "layer", maintain_order=True):
            pooled[VIEW_OF[tap]].add(of_site)  # type: ignore[index]
            steps.append(_steps_of(of_site, recording, tap=str(tap), layer=int(layer)))  # type: ignore[arg-type]
        candidates.append(_candidates(rows, recording, massive))
    tables = {
        "counts": pl.concat([table.counts(recording) for table in pooled.values()]),
        "steps": pl.concat(steps),
        "peaks": recording.any_layer_outliers().select(_PEAK_COLUMNS).collect(),
        "massive": pl.concat(candidates),
    }
    for name, table in tables.items():
        rows = _ROWS_OF_A_GROUP if name == "counts" else None
        write_table(table, directory / f"{name}.parquet", recording.ladder.facts, row_group_size=rows)


def _layers(recording: Recording) -> Iterator[pl.DataFrame]:
    """The rows of one layer after the other."""
    # Says what is wrong with a table that is missing or broken before any of them is read.
    for rows in recording.layers():
        yield rows.collect()


def _ladder_steps(magnitude: pl.Series, ladder: Ladder) -> UInt8[np.ndarray, " row"]:
    """How many edges a magnitude reaches: its top bits, counted from the floor's."""
    bits = magnitude.cast(pl.Float32).to_numpy().view(np.uint32) >> np.uint32(FLOAT32_SHIFT)
    return np.clip(bits.astype(np.int64) - ladder.floor_rung + 1, 0, N_EDGES).astype(np.uint8)


def _steps_of(rows: pl.DataFrame, recording: Recording, *, tap: str, layer: int) -> pl.DataFrame:
    shape = recording.run["n_sequences"], recording.run["d_model"]
    at = rows["sequence"].to_numpy(), rows["feature"].to_numpy()
    columns = {}
    for side in SIDES:
        dense = np.zeros(shape, np.uint8)
        dense[at] = _ladder_steps(rows[f"{side}peak"], recording.ladder)
        # As one value, which is read much faster than a list of as many numbers.
        columns[f"{side}step"] = pl.Series([dense.tobytes()], dtype=pl.Binary)
    return pl.DataFrame(columns).select(
        pl.lit(tap, tap_enum).alias("tap"),
        pl.lit(layer, pl.UInt16).alias("layer"),
        pl.lit(shape[1], pl.UInt32).alias("d_model"),
        *columns,
    )


def _candidates(rows: pl.DataFrame, recording: Recording, massive: list[Preset]) -> pl.DataFrame:
    """Rows that are massive by any of the presets, first tokens included."""
    medians = recording.sites().select("tap", "layer", "sequence", "median_magnitude")
    could_be = [
        pl.col("tap").is_in(VIEWS[preset.view]) & is_massive(pl.col("peak"), pl.col("median_magnitude"), preset)
        for preset in massive
    ]
    least = min((preset.magnitude for preset in massive), default=np.inf)
    return (
        rows.filter(pl.col("peak") > least)
        .drop("n_positions")
        .join(medians, on=["tap", "layer", "sequence"], validate="m:1")
        .filter(pl.any_horizontal(could_be) if could_be else pl.lit(False))
    )


class _Lists(NamedTuple):
    """The counts of rows, one after the other."""

    row: Int64[np.ndarray, " count"]
    """Whose they are."""
    edge: Int64[np.ndarray, " count"]
    value: Int64[np.ndarray, " count"]


def _lists(counts: pl.Series) -> _Lists:
    lengths = counts.list.len().to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    values = counts.explode(empty_as_null=False).to_numpy().astype(np.int64)
    return _Lists(row, np.arange(len(values)) - starts[row], values)


@dataclass(frozen=True)
class _Pooled:
    """The counts of one view, summed over its sites."""

    view: View
    union: pl.DataFrame
    """Its rows of `any_layer`."""
    starts: Int64[np.ndarray, " unit"]
    """Where the counts of each (sequence, feature) begin; as many as its union has."""
    n_values: Int64[np.ndarray, " count"]
    n_first: Int64[np.ndarray, " count"]
    """Sites at which the first token reaches the edge."""
    recording: Recording

    @classmethod
    def of(cls, recording: Recording, view: View) -> _Pooled:
        columns = ["sequence", "feature", "first_token_magnitude", "n_positions"]
        union = recording.any_layer_outliers().filter(pl.col("view") == view).select(columns).collect()
        lengths = union["n_positions"].list.len().to_numpy().astype(np.int64)
        starts = np.zeros(recording.run["n_sequences"] * recording.run["d_model"], np.int64)
        starts[_units(union, recording)] = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        return cls(view, union, starts, np.zeros(total, np.int64), np.zeros(total, np.int64), recording)

    def add(self, rows: pl.DataFrame) -> None:
        """Add one site's rows; each feature is in it at most once a sequence, so that no place is written twice."""
        start = self.starts[_units(rows, self.recording)]
        counts = _lists(rows["n_positions"])
        self.n_values[start[counts.row] + counts.edge] += counts.value
        reached = _first_reaches(rows, counts, self.recording.ladder)
        self.n_first[(start[counts.row] + counts.edge)[reached]] += 1

    def counts(self, recording: Recording) -> pl.DataFrame:
        """Ordered by edge, so that a reader skips all others."""
        union = _lists(self.union["n_positions"])
        first = _first_reaches(self.union, union, recording.ladder)
        at = pl.Series(union.row)
        return (
            self.union.select("sequence", "feature")[at]
            .with_columns(
                view=pl.lit(self.view, view_enum),
                edge=pl.Series(union.edge, dtype=pl.UInt8),
                n_positions=pl.Series(union.value, dtype=pl.UInt32),
                first_n_positions=pl.Series(first, dtype=pl.Boolean).cast(pl.UInt32),
                n_values=pl.Series(self.n_values, dtype=pl.UInt32),
                first_n_values=pl.Series(self.n_first, dtype=pl.UInt32),
            )
            .sort("edge", "sequence", "feature")
        )


def _units(rows: pl.DataFrame, recording: Recording) -> Int64[np.ndarray, " row"]:
    return rows["sequence"].to_numpy().astype(np.int64) * recording.run["d_model"] + rows["feature"].to_numpy()


def _first_reaches(rows: pl.DataFrame, counts: _Lists, ladder: Ladder) -> Bool[np.ndarray, " count"]:
    """Whether position 0 is one of the positions counted."""
    return counts.edge < _ladder_steps(rows["first_token_magnitude"], ladder)[counts.row].astype(np.int64)
