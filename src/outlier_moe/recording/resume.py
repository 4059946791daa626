"""The finished layers of a streamed run in a folder: after a kill the next run goes on from there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlier_moe.definitions.taps import View
from outlier_moe.machine.stages import read_note
from outlier_moe.recording.experts import MoeTables
from outlier_moe.recording.observer import TapSketch, ViewMaximum
from outlier_moe.recording.sketch import SiteSketch
from outlier_moe.streaming.call_arguments import Description
from outlier_moe.streaming.forgotten import CannotResumeError
from outlier_moe.tables.whole_outputs import whole_directory

log = logging.getLogger(__name__)

FORMAT = 1


class ChunkState(NamedTuple):
    """Where the forward of one chunk of sequences stands between two layers."""

    call: Description
    """What the next layer is about to be called with."""
    tensors: Mapping[str, Tensor]
    """The tensors of that call."""
    outputs: Sequence[Description]
    """What each finished layer has given, without values."""
    maxima: Mapping[View, ViewMaximum]
    """The maxima over the sites seen so far."""


class FinishedLayer(NamedTuple):
    """The figures of one layer."""

    sketches: Sequence[Sequence[TapSketch]]
    """For each chunk, those of its taps."""
    moe: MoeTables | None
    """The rows of its experts and its router."""


class ResumeFolder:
    """The finished layers of one run, and where its forwards stood after the last that was kept.

    Args:
        directory: The folder. What is there is of no use, and removed, if it belongs to another run.
        run: What the figures of a run depend on.
    """

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        self.directory = directory
        run_file = directory / "run.json"
        described = _as_json(run)
        if directory.exists() and read_note(run_file) != described:
            log.warning("%s belongs to another run: starting anew", directory)
            shutil.rmtree(directory)
        directory.mkdir(parents=True, exist_ok=True)
        run_file.write_text(json.dumps(described))

    @staticmethod
    def chunk_of(directory: Path, run: Mapping[str, Any]) -> int | None:
        """The chunk size of a folder, if its run is otherwise the same."""
        stored = read_note(directory / "run.json")
        if not isinstance(chunk := stored.get("chunk"), int):
            return None
        return chunk if stored == _as_json({**run, "chunk": chunk}) else None

    @property
    def n_finished(self) -> int:
        """Layers that need not run again."""
        return max((int(path.name.removeprefix("state-")) for path in self.directory.glob("state-*")), default=0)

    def add_layer(self, layer: int, finished: FinishedLayer) -> None:
        """Keep what was seen in a layer."""
        with whole_directory(self._layer(layer)) as directory:
            arrays: dict[str, Tensor] = {}
            for chunk, sketches in enumerate(finished.sketches):
                for number, (tap, sketch) in enumerate(sketches):
                    for name, values in sketch._asdict().items():
                        arrays[f"{chunk}/{number}/{tap}/{name}"] = torch.from_numpy(np.asarray(values))
            _save(arrays, directory / "sketches.safetensors")
            if finished.moe is not None:
                finished.moe.experts.write_ipc(directory / "experts.arrow", compression="zstd")
                finished.moe.routers.write_ipc(directory / "routers.arrow", compression="zstd")

    def read_layer(self, layer: int, *, n_chunks: int) -> FinishedLayer:
        """What was seen in a finished layer.

        Raises:
            CannotResumeError: If it cannot be read.
        """
        directory = self._layer(layer)
        sketches: list[list[TapSketch]] = [[] for _ in range(n_chunks)]
        fields: dict[tuple[int, int, Any], dict[str, Any]] = {}
        for key, values in _load(directory / "sketches.safetensors").items():
            chunk, number, tap, name = key.split("/")
            array = values.numpy()
            fields.setdefault((int(chunk), int(number), tap), {})[name] = array if array.ndim else array.item()
        for (chunk, _, tap), values in sorted(fields.items(), key=lambda item: item[0]):
            sketches[chunk].append(TapSketch(tap, SiteSketch(**values)))
        moe = None
        if (directory / "experts.arrow").exists():
            tables = (pl.scan_ipc(directory / f"{name}.arrow", glob=False).collect() for name in ("experts", "routers"))
            moe = MoeTables(*tables)
        return FinishedLayer(sketches, moe)

    def save(self, n_finished: int, chunks: Sequence[ChunkState]) -> None:
        """Save the state of the forwards in place of the last one."""
        older = list(self.directory.glob("state-*"))
        with whole_directory(self.directory / f"state-{n_finished:04}") as directory:
            for number, state in enumerate(chunks):
                tensors = {
                    path: tensor
                    for path, tensor in state.tensors.items()
                    if number == 0 or not _is_same(tensor, chunks[0].tensors.get(path))
                }
                _save_chunk(directory, number, state, tensors)
        for path in older:
            shutil.rmtree(path)

    def read_state(self, *, device: torch.device) -> list[ChunkState]:
        """The saved state of the forwards.

        Raises:
            CannotResumeError: If that cannot be read.
        """
        directory = self.directory / f"state-{self.n_finished:04}"
        return [_read_chunk(path, device) for path in sorted(directory.glob("*.json"))]

    def _layer(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:04}"


def _as_json(run: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({"format": FORMAT, **run}))


def _is_same(tensor: Tensor, other: Tensor | None) -> bool:
    """Whether two chunks are called with the same, as with masks and rotary tables."""
    return other is not None and tensor.shape == other.shape and tensor.dtype == other.dtype and tensor.equal(other)


def _save_chunk(directory: Path, number: int, state: ChunkState, tensors: Mapping[str, Tensor]) -> None:
    arrays = {f"call{path}": tensor.detach().cpu() for path, tensor in tensors.items()}
    for view, maximum in state.maxima.items():
        for name, values in vars(maximum).items():
            values = values.cpu() if isinstance(values, Tensor) else torch.from_numpy(values)
            arrays[f"maximum/{view}/{name}"] = values
    _save(arrays, directory / f"{number:04}.safetensors")
    description = {"call": state.call, "outputs": state.outputs}
    (directory / f"{number:04}.json").write_text(json.dumps(description))


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: _of_its_own(tensor.contiguous()) for name, tensor in tensors.items()}, path)


def _of_its_own(tensor: Tensor) -> Tensor:
    """A tensor that shares its memory with no other: safetensors refuses those that do."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _read_chunk(path: Path, device: torch.device) -> ChunkState:
    description = read_note(path)
    if not description:
        raise CannotResumeError(f"{path} cannot be read")
    arrays = _load(path.with_name("0000.safetensors")) | _load(path.with_suffix(".safetensors"))
    tensors = {name.removeprefix("call"): tensor for name, tensor in arrays.items() if name.startswith("call")}
    maxima: dict[View, ViewMaximum] = {}
    for name in arrays:
        if name.startswith("maximum/") and name.endswith("/union"):
            view: Any = name.split("/")[1]
            maxima[view] = _maximum(arrays, f"maximum/{view}/", device)
    return ChunkState(description["call"], tensors, description["outputs"], maxima)


def _maximum(arrays: Mapping[str, Tensor], prefix: str, device: torch.device) -> ViewMaximum:
    union = arrays[f"{prefix}union"].to(device, copy=True)
    maximum = ViewMaximum(*union.shape, device=device)
    for name in vars(maximum):
        setattr(maximum, name, union if name == "union" else arrays[f"{prefix}{name}"].numpy().copy())
    return maximum


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CannotResumeError(f"{path} cannot be read ({error})") from None
