"""All chunks of sequences of one streamed recording, between one layer and the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Int, UInt32
from torch import Tensor, nn

from outlier_moe.architectures.moe_parts import find_experts
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.machine.disk_space import explain_full_disk
from outlier_moe.machine.heap import release_freed_memory
from outlier_moe.recording.experts import MoeTables
from outlier_moe.recording.losses import sequence_losses
from outlier_moe.recording.observation import observation
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.resume import ChunkState, FinishedLayer, ResumeFolder
from outlier_moe.recording.waiting import Waiting, move_forward, waits_off_device
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.streaming.call_arguments import Description, IndescribableError, describe
from outlier_moe.streaming.forgotten import CannotResumeError, check_remembered, finished_layers, remember
from outlier_moe.streaming.layer_store import REST, LayerStore
from outlier_moe.streaming.lockstep import Lockstep
from outlier_moe.streaming.pace import Pace, Progress
from outlier_moe.streaming.prefetch import LayerReader

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamOptions:
    """Options of streaming. None changes a figure."""

    resume: Path | None = None
    """A folder for what is finished, from which an interrupted run goes on; None lets it start anew. The caller removes
    it when the recording is in its place."""
    save_every: int | Literal["auto"] = "auto"
    """Layers after which an interrupted run can go on; `auto` takes each, unless saving would take a twentieth of the
    time."""
    waiting: Waiting = "auto"
    """Where hidden states of waiting chunks are kept."""


@dataclass
class _Chunk:
    """Some sequences that go through the model together."""

    first_sequence: int
    tokens: Int[Tensor, "sequence position"]
    observer: ChunkObserver
    outputs: list[Description] = field(default_factory=list)
    """What each finished layer has given, without values."""


class StreamedChunks:
    """One attempt to record all sequences, in chunks of one size.

    Args:
        store: The model, layer by layer.
        tokens: All sequences.
        options: What to record.
        writer: Where to.
        chunk: Sequences in a chunk.
        advance: Called with the number of tokens that are done.
        stream: How to stream.
        folder: What an interrupted run has finished, and what this one will.
    """

    def __init__(
        self,
        store: LayerStore,
        tokens: UInt32[np.ndarray, "sequence position"],
        options: RecordOptions,
        writer: RecordingWriter,
        *,
        chunk: int,
        advance: Callable[[int], None],
        stream: StreamOptions,
        folder: ResumeFolder | None,
    ) -> None:
        self.store = store
        self.options = options
        self.writer = writer
        self.has_written = False
        self.n_resumed = 0 if folder is None else folder.n_finished
        self._device = store.skeleton.placement.device
        experts = find_experts(store.structure)
        self._chunks = [
            _Chunk(
                first,
                torch.from_numpy(tokens[first : first + chunk].astype(np.int64)).to(self._device),
                ChunkObserver(options.taps, options.ladder, first_sequence=first, experts=experts),
            )
            for first in range(0, len(tokens), chunk)
        ]
        self._current = self._chunks[0]
        self._folder = folder
        self._saving = Pace(stream.save_every)
        self._progress = Progress(tokens.size, store.n_layers, advance)
        self._waits_elsewhere = waits_off_device(
            stream.waiting, device=self._device, n_bytes=self._waiting_bytes(tokens.size)
        )
        runs = [partial(self._forward, chunk) for chunk in self._chunks]
        self._lockstep: Lockstep[list[float]] = Lockstep(store.structure, runs, awake=self._awake)

    def _waiting_bytes(self, n_tokens: int) -> int:
        """What waiting chunks hold: a hidden state, and the steps of the views' maxima, of each token and feature."""
        embedding = self.store.model.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        return n_tokens * embedding.embedding_dim * (self.store.model.dtype.itemsize + 3)

    def run(self) -> None:
        """Record everything.

        Raises:
            CannotResumeError: If what an interrupted run has left is not enough to go on from.
        """
        store = self.store
        first = self.n_resumed
        store.plan(first_layer=first)
        with ExitStack() as stack:
            reader = stack.enter_context(LayerReader(store, range(first, store.n_layers)))
            stack.enter_context(self._lockstep)
            stack.enter_context(observation(store.structure, self.options, lambda: self._current.observer))
            stack.enter_context(self._noted_outputs())
            reader.bring_in(REST, then=first)
            self._start()
            for layer in self._lockstep.layers(reader.present):
                self._finish(layer)
            losses = self._lockstep.results
        with explain_full_disk(self.writer.partial):
            for chunk, chunk_losses in zip(self._chunks, losses, strict=True):
                rows = chunk.observer.take_rows()
                self.writer.add_rows(rows, first_sequence=chunk.first_sequence, n_sequences=len(chunk_losses))
                self.writer.add_losses(chunk.first_sequence, chunk_losses)

    def _forward(self, chunk: _Chunk) -> list[float]:
        model, backbone = self.store.model, self.store.structure.backbone
        outputs = backbone(input_ids=chunk.tokens, use_cache=False)
        # What the layers have left in the heaps is in pieces that the logits do not fit into.
        release_freed_memory()
        return sequence_losses(model, backbone, outputs, chunk.tokens).tolist()

    @contextmanager
    def _awake(self, number: int) -> Iterator[None]:
        """While a chunk's forward runs: the hooks report to it, and its tensors are on the device."""
        self._current = self._chunks[number]
        forward = self._lockstep.forwards[number]
        if self._waits_elsewhere:
            move_forward(forward.call, self._current.observer, self._device)
        yield
        if self._waits_elsewhere:
            move_forward(forward.call, self._current.observer, torch.device("cpu"))

    @contextmanager
    def _noted_outputs(self) -> Iterator[None]:
        """Note what the layers give, if a later run may go on from there."""
        with ExitStack() as hooks:
            if self._folder is not None:
                for layer in self.store.structure.layers:
                    hooks.enter_context(layer.register_forward_hook(self._note_output))
            yield

    def _note_output(self, layer: nn.Module, args: object, output: object) -> None:
        try:
            self._current.outputs.append(describe(output, {}))
        except IndescribableError as reason:
            self._do_without_folder(reason)

    def _start(self) -> None:
        """Run all forwards to the first layer that is not finished."""
        if self.n_resumed == 0:
            return self._lockstep.start()
        assert self._folder is not None
        states = self._folder.read_state(device=self._device)
        if len(states) != len(self._chunks):
            raise CannotResumeError(f"{len(states)} chunks were kept of {len(self._chunks)}")
        for chunk, state in zip(self._chunks, states, strict=True):
            chunk.outputs, chunk.observer.maxima = list(state.outputs), dict(state.maxima)
        structure = self.store.structure
        with finished_layers(structure, lambda i: self._current.outputs[i], self.n_resumed, self._device):
            self._lockstep.start()
        for forward, state in zip(self._lockstep.forwards, states, strict=True):
            if forward.awaits != self.n_resumed or forward.call is None:
                raise CannotResumeError(f"layer {forward.awaits} comes after layer {self.n_resumed - 1}")
            remember(forward.call, state.call, state.tensors)
        for layer in range(self.n_resumed):
            self._write(layer, self._folder.read_layer(layer, n_chunks=len(self._chunks)))

    def _finish(self, layer: int) -> None:
        """Write what was seen of a layer, and keep it for a later run."""
        if self.n_resumed:
            for forward in self._lockstep.forwards:
                check_remembered(forward.call)
        finished = self._seen(layer)
        if self._folder is not None:
            with explain_full_disk(self._folder.directory):
                self._folder.add_layer(layer, finished)
        self._write(layer, finished)
        if self._folder is not None and layer + 1 < self.store.n_layers and self._saving.is_due():
            with self._saving.timed(), explain_full_disk(self._folder.directory):
                self._save(layer + 1)

    def _seen(self, layer: int) -> FinishedLayer:
        moe = [chunk.observer.experts.tables() for chunk in self._chunks if chunk.observer.experts is not None]
        return FinishedLayer(
            [chunk.observer.layers.pop(layer, []) for chunk in self._chunks],
            MoeTables(*map(pl.concat, zip(*moe, strict=True))) if moe else None,
        )

    def _write(self, layer: int, finished: FinishedLayer) -> None:
        self.has_written = True
        with explain_full_disk(self.writer.partial):
            for number, chunk in enumerate(self._chunks):
                self.writer.add_layer(layer, finished.sketches[number], first_sequence=chunk.first_sequence)
            if finished.moe is not None:
                self.writer.add_moe(finished.moe)
        self._progress.finish_layer()

    def _save(self, n_finished: int) -> None:
        """Keep where the forwards stand."""
        assert self._folder is not None
        if any(len(chunk.outputs) != n_finished for chunk in self._chunks):
            return self._do_without_folder("its layers do not run in order")
        states = []
        for chunk, forward in zip(self._chunks, self._lockstep.forwards, strict=True):
            assert forward.call is not None
            tensors: dict[str, Tensor] = {}
            try:
                call = describe((forward.call.args, forward.call.kwargs), tensors)
            except IndescribableError as reason:
                return self._do_without_folder(reason)
            states.append(ChunkState(call, tensors, chunk.outputs, chunk.observer.maxima))
        self._folder.save(n_finished, states)

    def _do_without_folder(self, reason: object) -> None:
        log.warning("this run cannot be resumed if it is interrupted: %s", reason)
        self._folder = None
