"""The record stage: tokens and a model in, the tables of its outliers out."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from outlier_moe import __version__
from outlier_moe.architectures.model_class import read_config
from outlier_moe.architectures.moe_hooks import pin_experts
from outlier_moe.architectures.positions import model_length
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.sharding import WHOLE, Shard
from outlier_moe.errors import StudyError
from outlier_moe.machine.devices import choose_device, peak_memory_bytes
from outlier_moe.machine.disk_space import explain_full_disk
from outlier_moe.machine.progress import token_progress
from outlier_moe.planning.modes import Mode, fitting_mode
from outlier_moe.planning.sizes import model_sizes
from outlier_moe.planning.workload import Workload
from outlier_moe.recording.finished_chunks import ChunkFolder
from outlier_moe.recording.kept_recordings import MADE_FROM, KeptRecordings, made_from
from outlier_moe.recording.resident import load_resident, record_resident
from outlier_moe.recording.streamed import StreamOptions, load_streamed, record_streamed
from outlier_moe.recording.writer import Decode, RecordingWriter
from outlier_moe.sources.computing_dtype import settle_dtype
from outlier_moe.sources.config_labels import model_labels
from outlier_moe.sources.models import open_checkpoint, stored_values
from outlier_moe.sources.origin import Origin, read_origin
from outlier_moe.sources.study_tokenizer import load_tokenizer
from outlier_moe.sources.tokenization import TokenTable, read_tokens, tokens_sha256
from outlier_moe.streaming.hub_shards import fetched_shards
from outlier_moe.tables.recording import FORMAT

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model, and how it takes all sequences."""

    model: PreTrainedModel
    """The model; its weights may be still to come."""
    structure: DecoderStructure
    """Its decoder layers."""
    device: torch.device
    """Where it runs."""
    mode: Mode
    """Whole, or layer by layer."""
    run: Callable[[RecordingWriter, Callable[[int], None]], dict[str, Any]]
    """Records all sequences; returns the facts that only the driver knows."""


def record_outliers(
    model_directory: Path,
    tokens_path: Path,
    output: Path,
    options: RecordOptions,
    *,
    kept: KeptRecordings | None = None,
    only_kept: bool = False,
) -> None:
    """Run a model over the corpus and write what its taps show.

    Args:
        model_directory: What `fetch_model` wrote.
        tokens_path: What `tokenize_corpus` wrote for this model.
        output: The folder to write; it appears when it is whole.
        options: What to record and how to run.
        kept: The model's recordings so far: one of the same is taken up, and this one is kept among them.
        only_kept: Whether to take a kept recording up, and nothing else.

    Raises:
        StudyError: If nothing of the same is kept and nothing else is to be done, the device is not there, the
            checkpoint does not fit, or one sequence does not fit into memory.
    """
    started = time.monotonic()
    tokens = _of_shard(read_tokens(tokens_path), options.shard)
    made = made_from(
        model_directory,
        tokens.metadata,
        options,
        **({} if kept is None else {"revision": kept.revision, "digests": kept.digests}),
    )
    if kept is not None and kept.take_up(made, options, output):
        return
    if only_kept:
        raise StudyError(
            "The kept recording is not of this text and model as they are now.",
            file=output,
            expected=f"a recording of tokens with SHA-256 {made['tokens'][:12]} in {output.parent / 'recordings'}",
            got="none",
            remedy="Run the same command again: the tokens are there now, and a node records them.",
        )
    device = choose_device(options.device)
    origin = read_origin(model_directory)
    caveats = _caveats(model_directory, tokens, origin)
    # What a run has finished, for the run after it if it is interrupted, and files that it will delete.
    resume, weights = (output.with_name(f".{output.name}.{what}") for what in ("resume", "weights"))
    # Before the model, which takes longer to load.
    decode = load_tokenizer(model_directory).decode
    loaded = _load(model_directory, tokens, options, origin, made, device=device, resume=resume, weights=weights)
    facts = {**_part(tokens, options.shard), "source": asdict(origin), "caveats": caveats, MADE_FROM: made}
    write_recording(output, loaded, tokens, options, facts, name=origin.model, decode=decode, started=started)
    if kept is not None:
        kept.keep(output)
    for folder in (resume, weights):
        shutil.rmtree(folder, ignore_errors=True)


def write_recording(
    output: Path,
    loaded: Loaded,
    tokens: TokenTable,
    options: RecordOptions,
    facts: Mapping[str, Any],
    *,
    name: str,
    decode: Decode,
    started: float,
) -> None:
    """Send all sequences through a model that is loaded, and write the folder of its recording.

    Args:
        output: The folder to write; it appears when it is whole.
        loaded: The model.
        tokens: The sequences.
        options: What to record.
        facts: What run.json says beside what the run itself shows.
        name: The model's name.
        decode: What turns tokens into text.
        started: When loading began, on the monotonic clock, in seconds.

    Raises:
        StudyError: If one sequence does not fit into memory, or the disk is full.
    """
    experts = pin_experts(loaded.structure)
    ready = time.monotonic()
    n_layers, device = len(loaded.structure.layers), loaded.device
    log.info("%s: %d layers on %s, %s, %s", name, n_layers, device, loaded.model.dtype, loaded.mode)
    writer = RecordingWriter(
        output, tokens=tokens.tokens, n_peaks=options.n_peaks, n_layers=n_layers, ladder=options.ladder
    )
    with explain_full_disk(writer.partial), writer, token_progress(name, tokens.tokens.size) as advance:
        driven = loaded.run(writer, advance)
        run = {
            **_provenance(loaded.model, n_layers, options, tokens),
            **facts,
            **driven,
            "d_model": writer.d_model,
            "model": name,
            "labels": model_labels(loaded.model, loaded.structure)._asdict(),
            "mode": loaded.mode,
            "experts": experts,
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
            "time_load_s": ready - started,
            "time_run_s": time.monotonic() - ready,
            "peak_memory_bytes": peak_memory_bytes(device),
        }
        writer.finish(run, decode)


def _caveats(model_directory: Path, tokens: TokenTable, origin: Origin) -> list[str]:
    """Warnings for readers of the recording. Refuses a model without positions for its sequences."""
    n_tokens, trusted = tokens.tokens.shape[1], origin.trust_remote_code
    length = model_length(model_directory, n_tokens, model=origin.model, shortens=False, trust_remote_code=trusted)
    said = [tokens.metadata.get("tokenizer_note"), tokens.metadata.get("length_note") or length.note]
    return [note for note in said if note is not None]


def _of_shard(tokens: TokenTable, shard: Shard) -> TokenTable:
    """The tokens of one shard, with the metadata of all."""
    chosen = shard.sequences(len(tokens.tokens))
    return TokenTable(tokens.tokens[chosen.start : chosen.stop], tokens.metadata)


def _part(tokens: TokenTable, shard: Shard) -> dict[str, Any]:
    """The entry of run.json for a shard."""
    if shard == WHOLE:
        return {}
    n_sequences = tokens.metadata["n_sequences"]
    first = shard.sequences(n_sequences).start
    return {"shard": {**shard._asdict(), "first_sequence": first, "n_sequences": n_sequences}}


def _load(
    model_directory: Path,
    tokens: TokenTable,
    options: RecordOptions,
    origin: Origin,
    made: dict[str, Any],
    *,
    device: torch.device,
    resume: Path,
    weights: Path,
) -> Loaded:
    how = {"dtype": options.dtype, "device": device, "trust_remote_code": origin.trust_remote_code}
    mode = options.mode
    if mode == "auto":
        config = read_config(model_directory, trust_remote_code=origin.trust_remote_code)
        if options.dtype == "checkpoint":
            settle_dtype(config, lambda: stored_values(model_directory), of=origin.model)
        sizes = model_sizes(config, dtype=options.dtype, trust_remote_code=origin.trust_remote_code)
        workload = Workload(*tokens.tokens.shape, taps=options.taps, chunk=options.chunk, dtype=options.dtype)
        mode = fitting_mode(sizes, workload, device=device)
    if mode == "streamed":
        source = fetched_shards(model_directory, weights, evict=options.evict)
        store = load_streamed(source, **how)

        def stream(writer: RecordingWriter, advance: Callable[[int], None]) -> dict[str, Any]:
            settings = StreamOptions(resume=resume)
            with store:
                done = record_streamed(store, tokens.tokens, options, writer, advance=advance, stream=settings)
            return {"chunk": done.chunk, "bytes_read": done.bytes_read, "n_layers_resumed": done.n_resumed}

        return Loaded(store.model, store.structure, device, "streamed", stream)
    model = load_resident(open_checkpoint(model_directory), **how)
    structure = find_structure(model)

    def run_whole(writer: RecordingWriter, advance: Callable[[int], None]) -> dict[str, Any]:
        folder = ChunkFolder(resume, _identity(model, tokens, options, made, device))
        chunk = record_resident(model, structure, tokens.tokens, options, writer, advance=advance, folder=folder)
        return {"chunk": chunk, "bytes_read": origin.weight_bytes}

    return Loaded(model, structure, device, "resident", run_whole)


def _identity(
    model: PreTrainedModel, tokens: TokenTable, options: RecordOptions, made: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """What the figures of a resident run depend on, and its chunk size."""
    return {
        # How many peaks are written is decided after all chunks.
        **{name: value for name, value in made.items() if name != "n_peaks"},
        "sequences": tokens_sha256(tokens.tokens),
        "chunk": options.chunk,
        "dtype": str(model.dtype),
        "device": device.type,
        "versions": {name: version(name) for name in ("outlier-moe", "torch", "transformers")},
    }


def _provenance(model: PreTrainedModel, n_layers: int, options: RecordOptions, tokens: TokenTable) -> dict[str, Any]:
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
    return {
        "format": FORMAT,
        "n_layers": n_layers,
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
