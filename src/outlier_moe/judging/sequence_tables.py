"""What each sequence contributes to a preset's figures, so that any draw of sequences is judged without the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from outlier_moe.definitions.presets import FirstToken, Preset
from outlier_moe.definitions.taps import VIEWS
from outlier_moe.judging.filtering import view_sites
from outlier_moe.judging.rule import is_systematic
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
            kept = is_systematic(most_layers, most_positions, self.preset)
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
