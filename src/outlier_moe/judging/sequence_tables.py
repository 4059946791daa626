"""What each sequence contributes to a preset's figures, so that any draw of sequences is judged without the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64, UInt64

from outlier_moe.definitions.taps import VIEWS, View
from outlier_moe.judging.filtering import FirstToken, Hits, Preset, hits, massive_rows, view_sites, without_first
from outlier_moe.tables.recording import Recording

WORD = 64
"""Layers whose bits are in one number."""


@dataclass(frozen=True)
class SequenceTables:
    """One preset's view of a recording, each sequence by itself, the first token in or out.

    Features that no draw of sequences can make systematic may be left out: see `candidates`.
    """

    preset: Preset
    """The definition."""
    first_token: FirstToken
    """Whether each sequence's first token counts."""
    sites: UInt64[np.ndarray, "sequence tap word feature"]
    """A bit for each layer of each tap: whether the feature affects it in that sequence."""
    n_values: Int64[np.ndarray, "sequence feature"]
    """Outlier values over all positions and sites."""
    n_positions: Int64[np.ndarray, "sequence feature"]
    """Positions affected at any site."""
    peak: Float32[np.ndarray, "sequence feature"]
    """The largest |x| where the feature is affected; 0 where it is not."""
    d_model: int
    """Features of the model, those without a column here included."""
    layers: int
    """What the layer fraction is taken over: decoder layers or sites, as the preset says."""
    positions: int
    """Positions of one sequence that count."""

    @classmethod
    def of(
        cls, preset: Preset, first_token: FirstToken, shape: ViewShape, arrays: dict[str, np.ndarray]
    ) -> SequenceTables:
        """The tables of a preset from arrays that it may share with others."""
        return cls(
            preset=preset,
            first_token=first_token,
            **arrays,
            d_model=shape.d_model,
            layers=shape.n_sites if preset.layers == "sites" else len(shape.layers),
            positions=shape.n_positions - (first_token == "excluded"),
        )

    @property
    def n_sequences(self) -> int:
        """Sequences recorded."""
        return len(self.sites)

    def candidates(self) -> SequenceTables:
        """The same without the features that are systematic in no draw of sequences.

        Drawing with replacement never affects more layers than all sequences together do, nor a larger share of the
        positions than the worst sequence has.
        """
        everywhere = np.bitwise_or.reduce(self.sites, axis=0)
        most_layers = layers_affected(everywhere[None], self.preset)[0] / self.layers
        if self.preset.rule == "massive":
            kept = most_layers > 0
        else:
            most_positions = self.n_positions.max(axis=0, initial=0) / self.positions
            kept = (most_layers >= self.preset.layer_fraction) & (most_positions >= self.preset.position_fraction)
        arrays = {name: getattr(self, name)[..., kept] for name in ("sites", "n_values", "n_positions", "peak")}
        return SequenceTables(
            **arrays,
            preset=self.preset,
            first_token=self.first_token,
            d_model=self.d_model,
            layers=self.layers,
            positions=self.positions,
        )


def layers_affected(
    sites: UInt64[np.ndarray, "draw tap word feature"], preset: Preset
) -> Int64[np.ndarray, "draw feature"]:
    """How many of what the preset calls layers have their bit set."""
    words = sites if preset.layers == "sites" else np.bitwise_or.reduce(sites, axis=1, keepdims=True)
    return np.bitwise_count(words).sum(axis=(1, 2), dtype=np.int64)


class ViewShape(NamedTuple):
    """The axes of the tables of one view."""

    taps: list[str]
    """Its taps, in order."""
    layers: list[int]
    """Decoder layers with a site, ascending."""
    sequences: list[int]
    """Sequences, ascending."""
    n_positions: int
    """Positions of one sequence."""
    d_model: int
    """Width of the hidden state."""
    n_sites: int
    """Sites: a tap may not be in every layer."""


def sequence_tables(recording: Recording, presets: list[Preset]) -> Iterator[SequenceTables]:
    """The tables of each preset, first with the first token and then without it.

    Presets that share a view and a magnitude share the reading; one such group is in memory at a time.

    Raises:
        StudyError: If a view was not recorded, or a threshold is not on the recording's ladder.
    """
    groups: dict[tuple[str, View, float, float], list[Preset]] = {}
    for preset in presets:
        ratio = preset.median_ratio if preset.rule == "massive" else 0.0
        groups.setdefault((preset.rule, preset.view, preset.magnitude, ratio), []).append(preset)
    for alike in groups.values():
        preset = alike[0]
        shape = view_shape(recording, preset)
        found = _massive_hits(recording, preset) if preset.rule == "massive" else hits(recording, alike)[preset.view]
        for first_token in get_args(FirstToken):
            arrays = _arrays(found, shape, first_token, by_value=preset.rule == "massive")
            for each in alike:
                yield SequenceTables.of(each, first_token, shape, arrays)


def view_shape(recording: Recording, preset: Preset) -> ViewShape:
    """The axes of a preset's view of a recording.

    Raises:
        StudyError: If the view was not recorded.
    """
    sites = view_sites(recording, preset)
    return ViewShape(
        taps=[tap for tap in VIEWS[preset.view] if tap in sites["tap"]],
        layers=sites["layer"].unique().sort().to_list(),
        sequences=sites["sequence"].unique().sort().to_list(),
        n_positions=int(sites["n_positions"][0]),
        d_model=int(recording.run["d_model"]),
        n_sites=sites.select("tap", "layer").n_unique(),
    )


def _massive_hits(recording: Recording, preset: Preset) -> Hits:
    """Peaks that are massive by the preset; without the first token they must be so by the later peak."""
    least = preset.median_ratio * pl.col("median_magnitude")
    sites = (
        massive_rows(recording, preset)
        .with_columns(
            n=pl.lit(1, pl.Int64), first=(pl.col("later_peak") <= preset.magnitude) | (pl.col("later_peak") < least)
        )
        .select("tap", "layer", "sequence", "feature", "peak", "later_peak", "n", "first")
        .collect()
    )
    return Hits(sites, sites.select("sequence", "feature", "n", "first").clear())


def table_arrays(shape: ViewShape) -> dict[str, np.ndarray]:
    """The arrays of `SequenceTables` before anything is counted."""
    n_sequences, n_words = len(shape.sequences), -(-len(shape.layers) // WORD)
    of_features = n_sequences, shape.d_model
    return {
        "sites": np.zeros((n_sequences, len(shape.taps), n_words, shape.d_model), np.uint64),
        "n_values": np.zeros(of_features, np.int64),
        "n_positions": np.zeros(of_features, np.int64),
        "peak": np.zeros(of_features, np.float32),
    }


def _arrays(found: Hits, shape: ViewShape, first_token: FirstToken, *, by_value: bool) -> dict[str, np.ndarray]:
    """The arrays of `SequenceTables`; `by_value` says that `n` marks a row and counts nothing."""
    n_taps = len(shape.taps)
    arrays = table_arrays(shape)
    rows = without_first(found.sites.lazy(), first_token).collect()
    sequence = np.searchsorted(shape.sequences, rows["sequence"])
    feature = rows["feature"].to_numpy()
    layer = np.searchsorted(shape.layers, rows["layer"])
    tap = rows["tap"].cast(pl.String).replace_strict(shape.taps, range(n_taps), return_dtype=pl.Int64).to_numpy()
    bit = np.uint64(1) << (layer % WORD).astype(np.uint64)
    np.bitwise_or.at(arrays["sites"], (sequence, tap, layer // WORD, feature), bit)
    largest = rows["peak" if first_token == "included" else "later_peak"].to_numpy()
    np.maximum.at(arrays["peak"], (sequence, feature), largest)
    if not by_value:
        np.add.at(arrays["n_values"], (sequence, feature), rows["n"].to_numpy())
        union = without_first(found.any_site.lazy(), first_token).collect()
        at = np.searchsorted(shape.sequences, union["sequence"]), union["feature"].to_numpy()
        arrays["n_positions"][at] = union["n"]
    return arrays
