"""From the activations of one chunk of sequences to sketches, site by site, and their maximum over sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt16, UInt32
from torch import Tensor

from outlier_moe.architectures.moe_hooks import ExpertOutputs
from outlier_moe.architectures.moe_parts import Experts
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.taps import VIEW_OF, VIEWS, Tap, View
from outlier_moe.errors import StudyError
from outlier_moe.recording.experts import ExpertObserver, MoeTables
from outlier_moe.recording.keeping import Keeping
from outlier_moe.recording.sketch import SiteSketch, sketch_site, sketch_union


class TapSketch(NamedTuple):
    """The sketch of one tap of a layer."""

    tap: Tap
    """Where the activations were read."""
    sketch: SiteSketch
    """What was counted."""


class OutlierRows(NamedTuple):
    """Rows of the maximum over a view's sites, one per (sequence, feature), as `schemas.AnyLayerOutlier` has them."""

    layer: UInt16[np.ndarray, " row"]
    """The layer in which the peak was seen first."""
    sequence: UInt16[np.ndarray, " row"]
    """Zero-based within the chunk."""
    feature: UInt32[np.ndarray, " row"]
    """Zero-based."""
    peak: Float32[np.ndarray, " row"]
    """The largest |x|."""
    peak_position: UInt16[np.ndarray, " row"]
    """The first position with it, in the layer above."""
    first_token_magnitude: Float32[np.ndarray, " row"]
    """The largest |x| at position 0; 0 if it stays below the floor."""
    later_peak: Float32[np.ndarray, " row"]
    """The largest |x| at the positions after it; 0 if it stays below the floor."""
    later_peak_position: UInt16[np.ndarray, " row"]
    """Its position."""
    n_positions: UInt16[np.ndarray, " count"]
    """The rows' counts at the ladder's edges, one row's after the other's."""
    offsets: Int64[np.ndarray, " row_plus_one"]
    """Where each row's counts start."""


class ViewMaximum:
    """The largest |x| over the sites of one view, for each (sequence, feature): exact on the ladder for each token too.

    Args:
        n_sequences: Sequences in the chunk.
        n_positions: Tokens in a sequence.
        n_features: Width of the sites.
        device: Where the activations are.
    """

    def __init__(self, n_sequences: int, n_positions: int, n_features: int, *, device: torch.device) -> None:
        shape = (n_sequences, n_features)
        # One ladder step a token and feature: all that is needed to count positions exactly over any number of sites.
        self.union = torch.zeros((n_sequences, n_positions, n_features), dtype=torch.uint8, device=device)
        self.peak = np.zeros(shape, np.float32)
        self.peak_position = np.zeros(shape, np.uint16)
        self.layer = np.zeros(shape, np.uint16)
        self.first_token_magnitude = np.zeros(shape, np.float32)
        self.later_peak = np.zeros(shape, np.float32)
        self.later_peak_position = np.zeros(shape, np.uint16)

    def include(self, layer: int, sketch: SiteSketch) -> None:
        """Raise the maxima to those of one more site; its steps are in the union already."""
        at = (sketch.sequence, sketch.feature)
        higher = sketch.peak > self.peak[at]
        where = (sketch.sequence[higher], sketch.feature[higher])
        self.peak[where] = sketch.peak[higher]
        self.peak_position[where] = sketch.peak_position[higher]
        self.layer[where] = layer
        self.first_token_magnitude[at] = np.maximum(self.first_token_magnitude[at], sketch.first_token_magnitude)
        higher = sketch.later_peak > self.later_peak[at]
        where = (sketch.sequence[higher], sketch.feature[higher])
        self.later_peak[where] = sketch.later_peak[higher]
        self.later_peak_position[where] = sketch.later_peak_position[higher]

    def rows(self, ladder: Ladder) -> OutlierRows:
        """One row per (sequence, feature) that reaches the floor at any site."""
        counts = sketch_union(self.union, ladder)
        at = (counts.sequence, counts.feature)
        # Sites where a feature stays below the floor were not looked at, so that a maximum below it is not known.
        first_reaches = self.first_token_magnitude[at] >= ladder.floor
        later_reaches = self.later_peak[at] >= ladder.floor
        return OutlierRows(
            layer=self.layer[at],
            sequence=counts.sequence,
            feature=counts.feature,
            peak=self.peak[at],
            peak_position=self.peak_position[at],
            first_token_magnitude=self.first_token_magnitude[at] * first_reaches,
            later_peak=self.later_peak[at] * later_reaches,
            later_peak_position=self.later_peak_position[at] * later_reaches,
            n_positions=counts.n_positions,
            offsets=counts.offsets,
        )


class FinishedChunk(NamedTuple):
    """The figures of one chunk of sequences."""

    first_sequence: int
    """The number, in the corpus, of its first."""
    losses: list[float]
    """Mean next-token loss of each sequence, in nats."""
    layers: Mapping[int, list[TapSketch]]
    """The sketches of each layer's taps."""
    rows: Mapping[View, OutlierRows]
    """The rows of the maximum over each view's sites."""
    moe: MoeTables | None
    """The rows of its experts and routers."""


class ChunkObserver:
    """What the hooks call: it sketches each tap of a chunk of sequences and keeps the maxima over each view's sites.

    Args:
        taps: The taps to record.
        ladder: The edges to count on.
        first_sequence: The number, in the corpus, of the chunk's first sequence.
        experts: The experts of each layer that has some.
    """

    def __init__(
        self,
        taps: tuple[Tap, ...],
        ladder: Ladder,
        *,
        first_sequence: int,
        experts: Mapping[int, Experts] | None = None,
    ) -> None:
        self.taps = taps
        self.ladder = ladder
        self.first_sequence = first_sequence
        self.experts = ExpertObserver(experts, ladder, first_sequence=first_sequence) if experts else None
        self.layers: dict[int, list[TapSketch]] = {}
        self.maxima: dict[View, ViewMaximum] = {}
        self._keeping = Keeping()

    def observe(self, tap: Tap, layer: int, x: Float[Tensor, "sequence position feature"]) -> None:
        """Sketch what a hook saw; `residual` serves `residual_rms` too."""
        if self.experts is not None:
            self.experts.observe(tap, layer, x)
        if tap in self.taps:
            self._sketch(tap, layer, x)
        if tap == "residual" and "residual_rms" in self.taps:
            self._sketch("residual_rms", layer, x)

    def observe_experts(self, outputs: ExpertOutputs) -> None:
        """Note what the experts of one layer put out."""
        assert self.experts is not None, "a model without experts has no hooks at them"
        self.experts.observe_experts(outputs)

    def take_rows(self) -> dict[View, OutlierRows]:
        """The rows of the maximum over each view's sites, which are forgotten."""
        rows: dict[View, OutlierRows] = {view: maximum.rows(self.ladder) for view, maximum in self.maxima.items()}
        self.maxima.clear()
        return rows

    def finish(self, losses: list[float]) -> FinishedChunk:
        """The figures of the chunk; the observer is emptied.

        Args:
            losses: Mean next-token loss of each sequence, in nats.
        """
        moe = None if self.experts is None else self.experts.tables()
        layers = dict(self.layers)
        self.layers.clear()
        return FinishedChunk(self.first_sequence, losses, layers, self.take_rows(), moe)

    def _sketch(self, tap: Tap, layer: int, x: Float[Tensor, "sequence position feature"]) -> None:
        maximum = self._maximum(tap, layer, x)
        scale = "token_rms" if tap == "residual_rms" else "none"
        sketch = sketch_site(x, ladder=self.ladder, union=maximum.union, scale=scale)
        maximum.include(layer, sketch)
        self.layers.setdefault(layer, []).append(TapSketch(tap, self._keeping.keep(sketch)))

    def _maximum(self, tap: Tap, layer: int, x: Float[Tensor, "sequence position feature"]) -> ViewMaximum:
        view = VIEW_OF[tap]
        if view not in self.maxima:
            self.maxima[view] = ViewMaximum(*x.shape, device=x.device)
        expected = tuple(self.maxima[view].union.shape)
        if tuple(x.shape) != expected:
            raise StudyError(
                f"The sites of the view '{view}' differ in shape, so that there is no maximum over them.",
                key=f"{tap} of layer {layer}",
                expected=f"[sequence, position, feature] = {list(expected)}",
                got=list(x.shape),
                remedy=f"Leave one of {', '.join(VIEWS[view])} out of record_outliers.taps for this model.",
            )
        if self.maxima[view].union.device != x.device:
            # The layers of a model may lie on several cards: the union goes with the chunk.
            self.maxima[view].union = self.maxima[view].union.to(x.device)
        return self.maxima[view]
