"""The resident driver: one load of the whole model, chunks of sequences through it, hooks at the taps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt32
from transformers import PreTrainedModel

from outlier_moe.architectures.model_class import meta_model, read_config
from outlier_moe.architectures.moe_parts import find_experts
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.errors import StudyError
from outlier_moe.recording.devices import free_by_card, free_cached_memory, is_out_of_memory
from outlier_moe.recording.losses import sequence_losses
from outlier_moe.recording.observation import observation
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.options import Dtype, RecordOptions
from outlier_moe.recording.placement import DeviceMap, balanced_placement
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.sources.checkpoint_dtype import values_by_dtype
from outlier_moe.sources.checkpoint_map import CheckpointMap, map_checkpoint, unlisted_tensors, warn_of_ignored
from outlier_moe.sources.computing_dtype import settle_dtype
from outlier_moe.streaming.memory import freed_memory_kept
from outlier_moe.streaming.misfits import lacks_weights, some
from outlier_moe.streaming.safetensors_files import read_tensors

log = logging.getLogger(__name__)

# About as many tokens as keep the matrix products of one forward busy; more only costs memory.
TOKENS_PER_CHUNK = {"cpu": 2048, "mps": 4096, "cuda": 16384}

# Of a card's free memory; activations and counts take the rest.
SHARE_FOR_WEIGHTS = 0.8


def load_resident(
    checkpoint: Path, *, dtype: Dtype, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The whole model, from safetensors alone: on one device, or spread over all cards if one is too small.

    Raises:
        StudyError: If the checkpoint leaves a weight to chance, or has one that the model does not know.
    """
    config = read_config(checkpoint, trust_remote_code=trust_remote_code)
    # No other file than those that `map_checkpoint` counts.
    config.transformers_weights = None
    files = map_checkpoint(checkpoint)
    if dtype == "checkpoint":
        chosen = settle_dtype(config, lambda: values_by_dtype(files.counting()), of=str(checkpoint))
    else:
        chosen = getattr(torch, dtype)
    skeleton = meta_model(config, chosen, trust_remote_code=trust_remote_code)
    warn_of_ignored(files.ignored, files.file_of, directory=checkpoint)
    model, report = _load_weights(
        checkpoint,
        files,
        type(skeleton),
        config=config,
        dtype=chosen,
        device_map=_device_map(skeleton, device),
        trust_remote_code=trust_remote_code,
    )
    if report["missing_keys"]:
        unlisted = unlisted_tensors(files.ignored, files.file_of)
        raise lacks_weights(checkpoint, sorted(report["missing_keys"]), model=model, unlisted=unlisted)
    for kind in ("unexpected_keys", "mismatched_keys", "error_msgs"):
        if report[kind]:
            found = sorted(map(str, report[kind]))
            raise StudyError(
                "The checkpoint does not fit the model.",
                file=checkpoint,
                key=some(found),
                expected=f"every weight of {type(model).__name__}, and no other",
                got=kind.replace("_", " "),
                remedy="Check that config.json and the safetensors files are of the same model and save.",
            )
    return model.eval()


def _load_weights(
    checkpoint: Path, files: CheckpointMap, model_class: type[PreTrainedModel], **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model with its weights, by transformers' own reading where that takes the tensors that count, and a report."""
    options |= {
        "local_files_only": True,
        "output_loading_info": True,
        # They are told by the caller, with all else that does not fit.
        "ignore_mismatched_sizes": True,
    }
    from_pretrained: Any = model_class.from_pretrained
    if files.as_transformers_reads:
        return from_pretrained(checkpoint, use_safetensors=True, **options)
    # transformers takes the last copy of a tensor that lies in several files, and no shards without an index.
    tensors = {
        name: tensor
        for file, header in files.headers.items()
        for name, tensor in read_tensors(
            checkpoint / file, header, [name for name in header if files.file_of.get(name) == file]
        ).items()
    }
    return from_pretrained(None, state_dict=tensors, **options)


def _device_map(skeleton: PreTrainedModel, device: torch.device) -> DeviceMap:
    """The one device, unless its memory is too small for the weights and there are others."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return {"": device}
    room = {card: int(SHARE_FOR_WEIGHTS * n_bytes) for card, n_bytes in enumerate(free_by_card())}
    if sum(parameter.nbytes for parameter in skeleton.parameters()) <= room[device.index or 0]:
        return {"": device}
    return balanced_placement(skeleton, room)


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
) -> int:
    """Send all sequences through the model and write what the taps show.

    Args:
        model: The whole model, on its device.
        structure: Its parts.
        tokens: All sequences.
        options: What to record.
        writer: Where to.
        advance: Called after each chunk with the number of its tokens.

    Returns:
        The number of sequences in a chunk, after it was halved if memory ran out.

    Raises:
        StudyError: If memory runs out with a single sequence.
    """
    n_sequences, sequence_length = tokens.shape
    chunk = initial_chunk(options, device=model.device, n_sequences=n_sequences, sequence_length=sequence_length)
    first, experts = 0, find_experts(structure)
    observer = ChunkObserver(options.taps, options.ladder, first_sequence=first, experts=experts)
    with freed_memory_kept(), observation(structure, options, lambda: observer):
        while first < n_sequences:
            rows = torch.from_numpy(tokens[first : first + chunk].astype(np.int64)).to(model.device)
            observer = ChunkObserver(options.taps, options.ladder, first_sequence=first, experts=experts)
            losses = None
            try:
                losses = _run_chunk(model, structure, rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if chunk == 1:
                    raise _one_sequence_too_large(sequence_length) from error
            if losses is None:
                # Outside of the handler, which holds on to what the chunk had computed.
                chunk //= 2
                log.warning("memory ran out: going on with %d sequences at a time", chunk)
                free_cached_memory(model.device)
                continue
            writer.add_layers(observer)
            writer.add_maxima(observer)
            writer.add_losses(first, losses)
            first += len(rows)
            advance(rows.numel())
    return chunk


def _one_sequence_too_large(sequence_length: int) -> StudyError:
    return StudyError(
        "Memory ran out with a single sequence.",
        key="tokenize_corpus.sequence_length",
        expected="a sequence whose activations fit beside the model",
        got=f"{sequence_length} tokens",
        remedy="Take a larger device, shorter sequences, or record_outliers.dtype: bfloat16.",
    )
