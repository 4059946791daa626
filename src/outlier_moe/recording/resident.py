"""The resident driver: one load of the whole model, chunks of sequences through it, hooks at the taps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt32
from torch import nn
from transformers import PreTrainedModel

from outlier_moe.architectures.moe_parts import find_experts
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.definitions.record_options import Dtype, RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.machine.devices import asked_dtype, free_by_card
from outlier_moe.machine.fitting import within_memory
from outlier_moe.machine.heap import freed_memory_kept
from outlier_moe.planning.workload import TOKENS_PER_CHUNK
from outlier_moe.recording.finished_chunks import ChunkFolder
from outlier_moe.recording.losses import sequence_losses
from outlier_moe.recording.observation import observation
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.placement import DeviceMap, balanced_placement
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.sources.checkpoint_map import CheckpointMap, map_checkpoint
from outlier_moe.streaming.layer_store import REST, LayerStore
from outlier_moe.streaming.misfits import some
from outlier_moe.streaming.opening import open_store
from outlier_moe.streaming.prefetch import LayerReader
from outlier_moe.streaming.safetensors_files import read_tensors
from outlier_moe.streaming.shards import LocalShards

log = logging.getLogger(__name__)

# Of a card's free memory; activations and counts take the rest.
SHARE_FOR_WEIGHTS = 0.8


def load_resident(
    checkpoint: Path, *, dtype: Dtype, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The whole model, from safetensors alone: on one device, or spread over all cards if one is too small.

    Raises:
        StudyError: If the checkpoint leaves a weight to chance, or has one that the model does not know.
    """
    source = LocalShards(checkpoint)
    with open_store(source, dtype=asked_dtype(dtype), device=device, trust_remote_code=trust_remote_code) as store:
        device_map = _device_map(store, device)
        if len(device_map) > 1:
            return _load_spread(checkpoint, store, device_map, trust_remote_code=trust_remote_code).eval()
        with LayerReader(store, range(store.n_layers)) as reader:
            for portion in (REST, *range(store.n_layers)):
                reader.bring_in(portion, then=portion + 1 if portion + 1 < store.n_layers else None)
    return store.model.eval()


def _device_map(store: LayerStore, device: torch.device) -> DeviceMap:
    """The one device, unless its memory is too small for the weights and there are others."""
    # What transformers spreads it would also read by itself.
    if device.type != "cuda" or torch.cuda.device_count() < 2 or store.skeleton.quantized:
        return {"": device}
    room = {card: int(SHARE_FOR_WEIGHTS * n_bytes) for card, n_bytes in enumerate(free_by_card())}
    if sum(parameter.nbytes for parameter in store.model.parameters()) <= room[device.index or 0]:
        return {"": device}
    return balanced_placement(store.model, room)


def _load_spread(
    checkpoint: Path, store: LayerStore, device_map: DeviceMap, *, trust_remote_code: bool
) -> PreTrainedModel:
    """A model over several cards, by transformers' own reading of a checkpoint that the store has judged."""
    files = map_checkpoint(checkpoint)
    from_pretrained: Any = type(store.model).from_pretrained
    options: dict[str, Any] = {
        "config": store.skeleton.config,
        "dtype": store.skeleton.placement.dtype,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
        "local_files_only": True,
        "output_loading_info": True,
        # They are told below, with all else that does not fit.
        "ignore_mismatched_sizes": True,
    }
    if files.as_transformers_reads:
        model, report = from_pretrained(checkpoint, use_safetensors=True, **options)
    else:
        model, report = from_pretrained(None, state_dict=_counting_tensors(checkpoint, files), **options)
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report[kind]:
            raise StudyError(
                "The checkpoint does not fit the model.",
                file=checkpoint,
                key=some(sorted(map(str, report[kind]))),
                expected=f"every weight of {type(model).__name__}, and no other",
                got=kind.replace("_", " "),
                remedy="Check that config.json and the safetensors files are of the same model and save.",
            )
    return model


def _counting_tensors(checkpoint: Path, files: CheckpointMap) -> dict[str, torch.Tensor]:
    """The tensors that count, since transformers takes the last of several copies, and no shards without an index."""
    return {
        name: tensor
        for file, header in files.headers.items()
        for name, tensor in read_tensors(
            checkpoint / file, header, [name for name in header if files.file_of.get(name) == file]
        ).items()
    }


def initial_chunk(options: RecordOptions, *, device: torch.device, n_sequences: int, sequence_length: int) -> int:
    """Sequences to send through the model together at first."""
    if options.chunk != "auto":
        return min(options.chunk, n_sequences)
    return max(1, min(n_sequences, TOKENS_PER_CHUNK[device.type] // sequence_length))


def _run_chunk(model: PreTrainedModel, structure: DecoderStructure, tokens: torch.Tensor) -> list[float]:
    """Send a chunk through the model; what the hooks see goes to its observer."""
    with torch.no_grad():
        outputs = structure.backbone(input_ids=tokens, use_cache=False)
        return sequence_losses(model, structure.backbone, outputs, tokens).tolist()


def record_resident(
    model: PreTrainedModel,
    structure: DecoderStructure,
    tokens: UInt32[np.ndarray, "sequence position"],
    options: RecordOptions,
    writer: RecordingWriter,
    *,
    advance: Callable[[int], None],
    folder: ChunkFolder | None = None,
) -> int:
    """Send all sequences through the model and write what the taps show.

    Args:
        model: The whole model, on its device.
        structure: Its parts.
        tokens: All sequences.
        options: What to record.
        writer: Where to.
        advance: Called after each chunk with the number of its tokens.
        folder: Where finished chunks are kept, for a run after one that was killed; what it holds is not run again.

    Returns:
        The number of sequences in a chunk, after it was halved if memory ran out.

    Raises:
        StudyError: If memory runs out with a single sequence.
    """
    n_sequences, sequence_length = tokens.shape
    # Other towers of the model, whose weights are not read, may be what it begins with.
    device = cast(nn.Embedding, model.get_input_embeddings()).weight.device
    chunk = initial_chunk(options, device=device, n_sequences=n_sequences, sequence_length=sequence_length)
    first, experts = 0, find_experts(structure)
    if folder is not None:
        first = _write_finished(folder, writer)
        advance(first * sequence_length)
        chunk = min(chunk, folder.chunk or chunk)
    observer = ChunkObserver(options.taps, options.ladder, first_sequence=first, experts=experts)

    def run_next() -> list[float]:
        nonlocal observer
        rows = torch.from_numpy(tokens[first : first + chunk].astype(np.int64)).to(device)
        observer = ChunkObserver(options.taps, options.ladder, first_sequence=first, experts=experts)
        return _run_chunk(model, structure, rows)

    def halve(error: Exception) -> None:
        nonlocal chunk
        if chunk == 1:
            raise _one_sequence_too_large(sequence_length) from error
        chunk //= 2
        log.warning("memory ran out: going on with %d sequences at a time", chunk)

    with freed_memory_kept(), observation(structure, options, lambda: observer):
        while first < n_sequences:
            losses = within_memory(run_next, take_less=halve, device=device)
            finished = observer.finish(losses)
            if folder is not None:
                folder.keep(finished, chunk=chunk)
            writer.add_chunk(finished)
            first += len(losses)
            advance(len(losses) * sequence_length)
    return chunk


def _write_finished(folder: ChunkFolder, writer: RecordingWriter) -> int:
    """Write the chunks that a killed run has finished; returns the first sequence that is left."""
    first = 0
    for finished in folder.read():
        writer.add_chunk(finished)
        first += len(finished.losses)
    if first:
        log.warning("%d sequences were finished by a run that was interrupted: going on after them", first)
    return first


def _one_sequence_too_large(sequence_length: int) -> StudyError:
    return StudyError(
        "Memory ran out with a single sequence.",
        key="tokenize_corpus.sequence_length",
        expected="a sequence whose activations fit beside the model",
        got=f"{sequence_length} tokens",
        remedy="Take a larger device, shorter sequences, or record_outliers.dtype: bfloat16.",
    )
