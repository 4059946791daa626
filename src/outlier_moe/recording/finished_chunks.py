"""The finished chunks of a resident run in a folder: after a kill the next run goes on from there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from outlier_moe.definitions.taps import Tap, View
from outlier_moe.machine.stages import read_note
from outlier_moe.recording.experts import MoeTables
from outlier_moe.recording.observer import FinishedChunk, OutlierRows, TapSketch
from outlier_moe.recording.sketch import SiteSketch
from outlier_moe.tables.whole_outputs import whole_directory

log = logging.getLogger(__name__)

FORMAT = 1

_ARRAYS = "arrays.safetensors.lz4"
_FACTS = "facts.json"
_RUN = "run.json"
_DAMAGE = (SafetensorError, pl.exceptions.PolarsError, pa.ArrowException)


class ChunkFolder:
    """The finished chunks of one run.

    Args:
        directory: The folder. What is there of another run is removed.
        run: What the figures of a run depend on.
    """

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        self.directory = directory
        described = json.loads(json.dumps({"format": FORMAT, "mode": "resident", **run}))
        if directory.exists() and read_note(directory / _RUN) != described:
            log.warning("%s belongs to another run: starting anew", directory)
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _RUN).write_text(json.dumps(described))

    @property
    def chunk(self) -> int | None:
        """Sequences in a chunk when the last was finished: fewer than at first, if memory ran out before it."""
        places = self._places()
        return read_note(places[-1] / _FACTS).get("chunk") if places else None

    def keep(self, finished: FinishedChunk, *, chunk: int) -> None:
        """Keep a chunk."""
        arrays: dict[str, np.ndarray] = {}
        scalars: dict[str, Any] = {}
        for layer, sketches in finished.layers.items():
            for number, (tap, sketch) in enumerate(sketches):
                _split(sketch._asdict(), f"layers/{layer}/{number}/{tap}", arrays, scalars)
        for view, rows in finished.rows.items():
            _split(rows._asdict(), f"rows/{view}", arrays, scalars)
        with whole_directory(self.directory / f"chunk-{finished.first_sequence:08}") as partial:
            with pa.CompressedOutputStream(str(partial / _ARRAYS), "lz4") as file:
                file.write(save(arrays))
            facts = {"losses": finished.losses, "scalars": scalars, "views": list(finished.rows), "chunk": chunk}
            (partial / _FACTS).write_text(json.dumps(facts))
            if finished.moe is not None:
                for name, table in finished.moe._asdict().items():
                    table.write_ipc(partial / f"{name}.arrow", compression="zstd")

    def read(self) -> Iterator[FinishedChunk]:
        """The chunks from the first sequence on; they end before one that is missing or damaged."""
        n_sequences = 0
        for place in self._places():
            finished = _read_chunk(place) if _first(place) == n_sequences else None
            if finished is None:
                # What comes after a gap is made again with it, in chunks that may lie otherwise.
                shutil.rmtree(place, ignore_errors=True)
                n_sequences = -1
                continue
            yield finished
            n_sequences += len(finished.losses)

    def _places(self) -> list[Path]:
        return sorted(self.directory.glob("chunk-*"))


def _read_chunk(place: Path) -> FinishedChunk | None:
    """A kept chunk; None if it is damaged."""
    try:
        with pa.CompressedInputStream(str(place / _ARRAYS), "lz4") as file:
            arrays: dict[str, Any] = load(file.read())
        facts = json.loads((place / _FACTS).read_text())
        layers: dict[int, list[TapSketch]] = {}
        rows: dict[View, OutlierRows] = {}
        for (kind, *where), values in sorted(_joined({**arrays, **facts["scalars"]}).items()):
            if kind == "layers":
                layer, _, tap = where
                layers.setdefault(int(layer), []).append(TapSketch(cast(Tap, tap), SiteSketch(**values)))
            else:
                rows[cast(View, where[0])] = OutlierRows(**values)
        # As they were observed: their order is that of the table's rows.
        rows = {view: rows[view] for view in facts["views"]}
        moe = None
        if (place / "experts.arrow").exists():
            moe = MoeTables(*(pl.scan_ipc(place / f"{name}.arrow", glob=False).collect() for name in MoeTables._fields))
        return FinishedChunk(_first(place), facts["losses"], layers, rows, moe)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        SafetensorError,
        pl.exceptions.PolarsError,
        pa.ArrowException,
    ) as error:
        log.warning("%s cannot be read and is made again: %s", place, error)
        return None


def _first(place: Path) -> int:
    return int(place.name.removeprefix("chunk-"))


def _split(fields: Mapping[str, Any], path: str, arrays: dict[str, np.ndarray], scalars: dict[str, Any]) -> None:
    """Sort fields into arrays, which have a file of their own, and the rest."""
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            arrays[f"{path}/{name}"] = np.ascontiguousarray(value)
        else:
            scalars[f"{path}/{name}"] = value


def _joined(values: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The fields of each sketch and of each view's rows, by where they belong."""
    fields: dict[tuple[str, ...], dict[str, Any]] = {}
    for path, value in values.items():
        *where, name = path.split("/")
        # Numbers are as wide as the largest, so that 10 comes after 9.
        fields.setdefault(tuple(part.zfill(8) if part.isdigit() else part for part in where), {})[name] = value
    return fields
