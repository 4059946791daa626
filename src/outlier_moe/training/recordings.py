"""The recording of a model while it trains, from memory: the same hooks, sketches and tables as of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt32
from torch import Tensor
from transformers import PreTrainedModel

from outlier_moe import __version__
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.recording.observation import observation
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.tables.recording import FORMAT


def record_in_training(
    model: PreTrainedModel,
    structure: DecoderStructure,
    inputs: Mapping[str, Tensor],
    positions: UInt32[np.ndarray, "sequence position"],
    output: Path,
    options: RecordOptions,
    *,
    decode: Callable[[list[int]], str],
    chunk: int,
) -> None:
    """Send some inputs through a model and write what its taps show.

    Args:
        model: The model, in evaluation mode, on its device.
        structure: Its parts.
        inputs: What the backbone takes, by name; the first dimension is the sequence's.
        positions: What stands at each position: a token, or the number of an image's patch.
        output: The folder to write; it appears when it is whole.
        options: What to record.
        decode: What to call what stands at a position.
        chunk: Sequences that go through the model together.
    """
    n_layers = len(structure.layers)
    writer = RecordingWriter(
        output, tokens=positions, n_peaks=options.n_peaks, n_layers=n_layers, ladder=options.ladder
    )
    observer = ChunkObserver(options.taps, options.ladder, first_sequence=0)
    with writer, observation(structure, options, lambda: observer), torch.no_grad():
        for first in range(0, len(positions), chunk):
            observer = ChunkObserver(options.taps, options.ladder, first_sequence=first)
            structure.backbone(
                **{name: of.narrow(0, first, min(chunk, len(of) - first)) for name, of in inputs.items()}
            )
            # The loss is taken elsewhere, on more than these.
            writer.add_chunk(observer.finish([math.nan] * len(positions[first : first + chunk])))
        writer.finish(_facts(model, n_layers, options, positions), decode)


def _facts(
    model: PreTrainedModel, n_layers: int, options: RecordOptions, positions: UInt32[np.ndarray, "sequence position"]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "n_layers": n_layers,
        "d_model": model.config.hidden_size,
        "n_parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "mode": "in training",
        "taps": list(options.taps),
        "floor": options.floor,
        "n_sequences": positions.shape[0],
        "sequence_length": positions.shape[1],
        "versions": {"outlier_moe": __version__, "torch": torch.__version__},
    }
