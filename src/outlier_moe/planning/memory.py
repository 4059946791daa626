"""The memory that a recording takes at its peak, in both modes.

On a CPU the weights are the files' own bytes, mapped: they count as the process's memory while they are in use. What
is copied as it comes in (dequantised, converted to another precision, experts joined) is memory of the process, and
lies beside the file's bytes for as long as it takes to convert one layer.
"""

from __future__ import annotations

from typing import NamedTuple

from outlier_moe.planning.sizes import ModelSizes, Portion
from outlier_moe.planning.workload import CROSS_ENTROPY_BYTES, HEAD_BYTES, TOKENS_PER_CHUNK, DeviceType, Workload

MIB = 2**20
# Measured after all imports and the first run of everything compiled (torch 2.13, transformers 5.23, Linux); CUDA's
# libraries and its context on the host, and the context on the device, are NVIDIA's usual figures.
LIBRARIES_BYTES = {"cpu": 640 * MIB, "mps": 640 * MIB, "cuda": 2560 * MIB}
DEVICE_CONTEXT_BYTES = 640 * MIB
# A slice of the logits in float32, and what cross entropy makes of it.
LOSS_COPIES = 2
# Bytes of a feature that has a row: its figures, and its list of counts at some 40 edges.
ROW_BYTES = 128
# The C library takes large pieces from the system one by one. Smaller ones come from its heaps, which at the peak hold
# about as much again in gaps; the allocator of an accelerator holds a tenth.
HEAP_PIECE_BYTES = 32 * MIB
GAPS_IN_HEAPS = 1.0
GAPS = 0.1
# A whole model on a CPU has all it makes in a heap that gives nothing back until the end: layers beside logits, gaps.
GAPS_IN_KEPT_HEAP = 2.0
# Blocks of float64 and int64 that the sketch on an accelerator goes through.
SKETCH_BLOCK_BYTES = 128 * MIB


class Need(NamedTuple):
    """Bytes in memory at the peak of a run."""

    weights: int
    """Weights that are in memory at once."""
    states: int
    """Hidden states of sequences that wait for others."""
    union: int
    """One byte, the ladder step, for each token, feature and view."""
    work: int
    """Activations of the widest part of a layer, or the logits, whichever is larger, and unwritten rows."""
    libraries: int
    """Libraries in memory before any model."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self)


class Memory(NamedTuple):
    """Memory of a run at its peak."""

    process: Need
    """Memory of the process."""
    device: Need | None
    """Memory of the accelerator, if it has its own."""


def chunk_sequences(workload: Workload, device: DeviceType) -> int:
    """Sequences that go through the model together."""
    if workload.chunk != "auto":
        return min(workload.chunk, workload.n_sequences)
    return max(1, min(workload.n_sequences, TOKENS_PER_CHUNK[device] // workload.sequence_length))


def resident_memory(sizes: ModelSizes, workload: Workload, *, device: DeviceType) -> Memory:
    """What a run takes that has the whole model in memory."""
    n_tokens = chunk_sequences(workload, device) * workload.sequence_length
    rows = _row_bytes(sizes, workload, n_sequences=chunk_sequences(workload, device), n_layers=len(sizes.layers))
    union = n_tokens * sizes.d_model * workload.n_views
    work = _work_bytes(sizes, workload, device=device)
    if device == "cpu":
        losses = _made_in_losses(sizes, workload, device)
        made = _made_in_layer(sizes, workload, device).n_bytes + losses.n_bytes
        work = int(made * (1 + GAPS_IN_KEPT_HEAP))
    if device != "cuda":
        # What is copied as it comes in lies beside the files, which are mapped until the whole model is there.
        weights = sizes.computed_bytes + sum(_beside(portion) for portion in (*sizes.layers, sizes.rest))
        return Memory(Need(weights, 0, union, work + rows, LIBRARIES_BYTES[device]), None)
    on_device = Need(sizes.computed_bytes, 0, union, work, DEVICE_CONTEXT_BYTES)
    return Memory(Need(_largest(sizes), 0, 0, rows, LIBRARIES_BYTES[device]), on_device)


def streamed_memory(sizes: ModelSizes, workload: Workload, *, device: DeviceType) -> Memory:
    """What a run takes that has one layer in memory, and all sequences between layers."""
    union = workload.n_tokens * sizes.d_model * workload.n_views
    states = workload.n_tokens * sizes.d_model * sizes.itemsize
    rows = _row_bytes(sizes, workload, n_sequences=workload.n_sequences, n_layers=1)
    work = _work_bytes(sizes, workload, device=device)
    in_flight = max(_in_flight(layer) for layer in sizes.layers)
    weights = max(sizes.rest.computed + in_flight, _in_flight(sizes.rest))
    if device != "cuda":
        return Memory(Need(weights, states, union, work + rows, LIBRARIES_BYTES[device]), None)
    # The next layer is read into the host's memory meanwhile.
    host = Need(_largest(sizes), 0, 0, rows, LIBRARIES_BYTES[device])
    return Memory(host, Need(weights, states, union, work, DEVICE_CONTEXT_BYTES))


def _in_flight(portion: Portion) -> int:
    """Bytes of a portion while it is read."""
    return portion.computed + _beside(portion)


def _beside(portion: Portion) -> int:
    """Bytes in addition to a portion while it is read: the source, if it is copied."""
    return portion.stored if portion.copied else 0


def _largest(sizes: ModelSizes) -> int:
    return max(portion.stored for portion in (*sizes.layers, sizes.rest))


class _Made(NamedTuple):
    """Tensors that are in memory at the same time."""

    n_bytes: int
    """Bytes of all tensors."""
    piece: int
    """Bytes of a large tensor."""

    def with_gaps(self, device: DeviceType) -> int:
        """Bytes that the allocator holds for the tensors."""
        in_heaps = device == "cpu" and self.piece < HEAP_PIECE_BYTES
        return int(self.n_bytes * (1 + (GAPS_IN_HEAPS if in_heaps else GAPS)))


def _work_bytes(sizes: ModelSizes, workload: Workload, *, device: DeviceType) -> int:
    """Bytes that one chunk makes in the widest part of a layer or in the head, whichever is more, with gaps."""
    made = (_made_in_layer(sizes, workload, device), _made_in_losses(sizes, workload, device))
    return max(each.with_gaps(device) for each in made) + (SKETCH_BLOCK_BYTES if device == "cuda" else 0)


def _made_in_layer(sizes: ModelSizes, workload: Workload, device: DeviceType) -> _Made:
    n_sequences = chunk_sequences(workload, device)
    n_tokens = n_sequences * workload.sequence_length
    # Queries and keys are turned by their positions, and keys and values repeated for each head: all of it twice.
    widest = max(2 * sizes.mixer_width, sizes.feed_forward_width) * n_tokens * sizes.itemsize
    # The input of the layer, its norm, and the norm's own float32.
    stream = n_tokens * sizes.d_model * (3 * sizes.itemsize + 8)
    # Scores, their softmax in float32, and its result.
    scores = n_sequences * sizes.n_scores * workload.sequence_length**2 * (2 * sizes.itemsize + 4)
    # Three matrices at least share what the widest part makes.
    return _Made(widest + stream + scores, piece=max(widest // 3, scores // 2))


def _made_in_losses(sizes: ModelSizes, workload: Workload, device: DeviceType) -> _Made:
    n_tokens = chunk_sequences(workload, device) * workload.sequence_length
    logits = min(HEAD_BYTES, workload.sequence_length * sizes.vocabulary * sizes.itemsize)
    states = n_tokens * sizes.d_model * sizes.itemsize
    return _Made(states + logits + LOSS_COPIES * CROSS_ENTROPY_BYTES, piece=logits - 1)


def _row_bytes(sizes: ModelSizes, workload: Workload, *, n_sequences: int, n_layers: int) -> int:
    return n_layers * len(workload.taps) * n_sequences * sizes.d_model * ROW_BYTES
