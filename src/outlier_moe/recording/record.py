"""The record stage: tokens and a model in, the tables of its outliers out."""

from __future__ import annotations

import json
import logging
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from outlier_moe import __version__
from outlier_moe.moe_hooks import pin_experts
from outlier_moe.recording.devices import choose_device, peak_memory_bytes
from outlier_moe.recording.options import RecordOptions
from outlier_moe.recording.progress import token_progress
from outlier_moe.recording.resident import load_resident, record_resident
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.recording_files import FORMAT
from outlier_moe.sources.models import open_checkpoint
from outlier_moe.structure import DecoderStructure, find_structure
from outlier_moe.tokenization import TokenTable, read_tokens

log = logging.getLogger(__name__)


def record_outliers(model_directory: Path, tokens_path: Path, output: Path, options: RecordOptions) -> None:
    """Run a model over the corpus and write what its taps show.

    Args:
        model_directory: What `fetch_model` wrote.
        tokens_path: What `tokenize_corpus` wrote for this model.
        output: The folder to write; it appears when it is whole.
        options: What to record and how to run.

    Raises:
        StudyError: If the device is not there, the checkpoint does not fit, or one sequence does not fit into memory.
    """
    started = time.monotonic()
    tokens = read_tokens(tokens_path)
    device = choose_device(options.device)
    source = json.loads((model_directory / "source.json").read_text())
    checkpoint = open_checkpoint(model_directory)
    model = load_resident(
        checkpoint,
        dtype=options.dtype,
        device=device,
        trust_remote_code=source.get("trust_remote_code", False),
    )
    structure = find_structure(model)
    experts_implementation = pin_experts(structure)
    loaded = time.monotonic()
    log.info("%s: %d layers on %s, %s", model_directory.name, len(structure.layers), device, model.dtype)
    decode = AutoTokenizer.from_pretrained(model_directory, local_files_only=True).decode
    writer = RecordingWriter(output, tokens=tokens.tokens, n_peaks=options.n_peaks, n_layers=len(structure.layers))
    with writer, token_progress(model_directory.name, tokens.tokens.size) as advance:
        chunk = record_resident(model, structure, tokens.tokens, options, writer, advance=advance)
        run = {
            **_provenance(model, structure, options, tokens),
            "model": model_directory.name,
            "source": source,
            "mode": "resident",
            "experts": experts_implementation,
            "chunk": chunk,
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
            "time_load_s": loaded - started,
            "time_run_s": time.monotonic() - loaded,
            "peak_memory_bytes": peak_memory_bytes(device),
            "bytes_read": sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")),
        }
        writer.finish(run, decode)


def _provenance(
    model: PreTrainedModel, structure: DecoderStructure, options: RecordOptions, tokens: TokenTable
) -> dict[str, Any]:
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
    return {
        "format": FORMAT,
        "n_layers": len(structure.layers),
        "d_model": embedding.shape[1],
        "n_parameters": model.num_parameters(),
        "n_embedding_parameters": embedding.numel(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "taps": list(options.taps),
        "floor": options.floor,
        "n_sequences": tokens.tokens.shape[0],
        "sequence_length": tokens.tokens.shape[1],
        "tokens": tokens.metadata,
        "versions": {
            "outlier_moe": __version__,
            **{name: version(name) for name in ("torch", "transformers", "safetensors", "numba", "polars")},
            "python": platform.python_version(),
        },
    }
