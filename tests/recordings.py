"""Recordings of made-up activations, written by the project's own observer and writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.taps import Tap
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.tables.recording import FORMAT, Recording, read_recording

Activations = Mapping[tuple[Tap, int], np.ndarray]
"""(tap, layer) -> [sequence, position, feature]."""


def made_up_activations(
    *, n_layers: int, shape: tuple[int, int, int], seed: int, taps: tuple[Tap, ...] = ("attn_in", "mlp_in", "residual")
) -> dict[tuple[Tap, int], np.ndarray]:
    """Normal noise in which some features are large: some in all layers, some at the first token alone."""
    random = np.random.default_rng(seed)
    activations = {}
    size = np.exp(random.normal(0.0, 1.0, shape[-1]))
    for layer in range(n_layers):
        for tap in taps:
            x = random.standard_normal(shape) * size
            x[..., 1] *= 4
            x[:, 0, 2] = 200 * (layer + 1)
            if layer == 0:
                x[..., 3] *= 10
            activations[tap, layer] = x.astype(np.float32)
    return activations


def write_recording(
    directory: Path, activations: Activations, *, chunk: int = 2, floor: float = 3.0, corpus: str = "a" * 64
) -> Recording:
    """The recording of given activations, as `record_outliers` would leave it."""
    shape = next(iter(activations.values())).shape
    n_sequences, n_positions, d_model = shape
    n_layers = 1 + max(layer for _, layer in activations)
    taps: tuple[Tap, ...] = tuple(dict.fromkeys(tap for tap, _ in activations))
    recorded: tuple[Tap, ...] = (*taps, "residual_rms") if "residual" in taps else taps
    tokens = np.arange(n_sequences * n_positions, dtype=np.uint32).reshape(n_sequences, n_positions)
    ladder = Ladder(floor=floor)
    with RecordingWriter(directory, tokens=tokens, n_peaks=4, n_layers=n_layers, ladder=ladder) as writer:
        for first in range(0, n_sequences, chunk):
            observer = ChunkObserver(recorded, ladder, first_sequence=first)
            for (tap, layer), x in activations.items():
                observer.observe(tap, layer, torch.from_numpy(x[first : first + chunk]))
            writer.add_chunk(observer.finish([2.0] * len(tokens[first : first + chunk])))
        run = {
            "format": FORMAT,
            "floor": floor,
            "taps": list(recorded),
            "n_layers": n_layers,
            "d_model": d_model,
            "n_sequences": n_sequences,
            "sequence_length": n_positions,
            "tokens": {"corpus_sha256": corpus},
        }
        writer.finish(run, lambda ids: f"<{ids[0]}>")
    return read_recording(directory)
