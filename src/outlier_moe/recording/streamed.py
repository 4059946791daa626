"""The streamed driver: one decoder layer at a time is in memory, and all sequences go through it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt32

from outlier_moe.definitions.record_options import Dtype, RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.machine.devices import asked_dtype
from outlier_moe.machine.fitting import within_memory
from outlier_moe.recording.resident import initial_chunk
from outlier_moe.recording.resume import ResumeFolder
from outlier_moe.recording.streamed_chunks import StreamedChunks, StreamOptions
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.streaming.forgotten import CannotResumeError
from outlier_moe.streaming.layer_store import LayerStore
from outlier_moe.streaming.opening import open_store
from outlier_moe.streaming.shards import LocalShards, ShardSource

__all__ = ["StreamOptions", "StreamedRun", "load_streamed", "record_streamed"]

log = logging.getLogger(__name__)

DEFAULT = StreamOptions()


class StreamedRun(NamedTuple):
    """Facts about a streamed run."""

    chunk: int
    """Sequences that went through a layer together, after halving if memory ran out."""
    bytes_read: int
    """Bytes of tensors read from the checkpoint."""
    n_resumed: int
    """Layers that an interrupted run had finished."""


def load_streamed(
    checkpoint: Path | ShardSource, *, dtype: Dtype, device: torch.device, trust_remote_code: bool = False
) -> LayerStore:
    """A model whose weights stay in the checkpoint until they are needed; it has `model` and `structure`.

    Raises:
        StudyError: If the checkpoint leaves a weight to chance, has one that the model does not know, or a file of it
            is broken.
    """
    source = LocalShards(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    return open_store(source, dtype=asked_dtype(dtype), device=device, trust_remote_code=trust_remote_code)


def record_streamed(
    store: LayerStore,
    tokens: UInt32[np.ndarray, "sequence position"],
    options: RecordOptions,
    writer: RecordingWriter,
    *,
    advance: Callable[[int], None],
    stream: StreamOptions = DEFAULT,
) -> StreamedRun:
    """Send all sequences through one layer after the other and write what the taps show.

    Args:
        store: The model, layer by layer.
        tokens: All sequences.
        options: What to record.
        writer: Where to.
        advance: Called with the number of tokens that are done: each layer counts for its share.
        stream: How to stream.

    Raises:
        StudyError: If memory runs out with a single sequence or late in the run, or the disk is full.
    """
    run = _identity(store, tokens, options)
    chunk = _first_chunk(store, tokens, options, stream, run)
    chunks: StreamedChunks | None = None

    def run_all() -> StreamedRun:
        nonlocal chunks
        while True:
            folder = None if stream.resume is None else ResumeFolder(stream.resume, {**run, "chunk": chunk})
            chunks = StreamedChunks(
                store, tokens, options, writer, chunk=chunk, advance=advance, stream=stream, folder=folder
            )
            try:
                chunks.run()
            except CannotResumeError as reason:
                _start_anew(stream.resume, reason, has_written=chunks.has_written)
            else:
                return StreamedRun(chunk, store.bytes_read, chunks.n_resumed)

    def halve(error: Exception) -> None:
        nonlocal chunk
        has_written = chunks is not None and chunks.has_written
        chunk = _halved(chunk, tokens.shape[1], error, has_written=has_written)

    return within_memory(run_all, take_less=halve, device=store.skeleton.placement.device)


def _first_chunk(
    store: LayerStore,
    tokens: UInt32[np.ndarray, "sequence position"],
    options: RecordOptions,
    stream: StreamOptions,
    run: dict[str, Any],
) -> int:
    """The chunk of the run that is resumed, if it was not asked for another, else that of any run."""
    device = store.skeleton.placement.device
    n_sequences, sequence_length = tokens.shape
    initial = initial_chunk(options, device=device, n_sequences=n_sequences, sequence_length=sequence_length)
    stored = ResumeFolder.chunk_of(stream.resume, run) if stream.resume is not None else None
    return stored if options.chunk == "auto" and stored is not None else initial


def _identity(
    store: LayerStore, tokens: UInt32[np.ndarray, "sequence position"], options: RecordOptions
) -> dict[str, Any]:
    """What the figures of a run depend on."""
    model = store.model
    return {
        "checkpoint": store.source.identity,
        "model": hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode()).hexdigest(),
        "tokens": hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest(),
        "shape": list(tokens.shape),
        "taps": list(options.taps),
        "floor": options.floor,
        "dtype": str(model.dtype),
        "device": store.skeleton.placement.device.type,
        "versions": {name: version(name) for name in ("outlier-moe", "torch", "transformers")},
    }


def _start_anew(resume: Path | None, reason: CannotResumeError, *, has_written: bool) -> None:
    if resume is not None:
        shutil.rmtree(resume, ignore_errors=True)
    if has_written:
        raise StudyError(
            "An interrupted run of this model cannot be resumed.",
            file=resume,
            got=str(reason),
            remedy="Run it again: what it had finished is removed, and it starts anew.",
        ) from reason
    log.warning("the interrupted run cannot be resumed (%s): starting anew", reason)


def _halved(chunk: int, sequence_length: int, error: Exception, *, has_written: bool) -> int:
    """The chunk to try next after memory ran out."""
    if chunk == 1:
        raise StudyError(
            "Memory ran out with a single sequence.",
            key="tokenize_corpus.sequence_length",
            expected="a sequence whose activations fit beside one layer of the model",
            got=f"{sequence_length} tokens",
            remedy="Take a larger device, shorter sequences, or record_outliers.dtype: bfloat16.",
        ) from error
    if has_written:
        raise StudyError(
            "Memory ran out in a later layer.",
            key="record_outliers.chunk",
            expected="a chunk whose activations fit beside each layer of the model",
            got=f"{chunk} sequences",
            remedy=f"Set it to {chunk // 2}.",
        ) from error
    log.warning("memory ran out: starting anew with %d sequences at a time", chunk // 2)
    return chunk // 2
