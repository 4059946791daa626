"""The folder of one recording: rows are appended chunk by chunk, and the folder appears when it is whole."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import UInt32

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.taps import View
from outlier_moe.recording.experts import MoeTables
from outlier_moe.recording.observer import FinishedChunk, OutlierRows, TapSketch
from outlier_moe.recording.tables import (
    ANY_LAYER_SCHEMA,
    LAYER_SCHEMA,
    SiteFigures,
    any_layer_batch,
    layer_batch,
    site_figures,
    small_table,
)
from outlier_moe.tables import moe as schemas_moe
from outlier_moe.tables import schemas
from outlier_moe.tables.files import seal, with_facts, write_table
from outlier_moe.tables.whole_outputs import partial_of, put_in_place, remove_orphans

log = logging.getLogger(__name__)

COMPRESSION = pa.ipc.IpcWriteOptions(compression="zstd")


Decode = Callable[[list[int]], str]
"""What turns tokens into text: a tokenizer's `decode`."""


class RecordingWriter:
    """Collects a recording in a folder beside its final place and moves it there when all is written.

    Leaving the `with` block by an exception removes what was written.

    Args:
        directory: The final place. What stands there is replaced, at the very end.
        tokens: The corpus' tokens.
        n_peaks: Features kept in peaks.parquet for each site and sequence.
        n_layers: Decoder layers of the model; each gets its table, also if nothing reaches the floor there.
        ladder: The edges that rows are counted on; every table says which.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tokens: UInt32[np.ndarray, "sequence position"],
        n_peaks: int,
        n_layers: int,
        ladder: Ladder,
    ) -> None:
        self.directory = directory
        self.partial = partial_of(directory)
        self.tokens = tokens
        self.n_peaks = n_peaks
        self.n_layers = n_layers
        self.ladder = ladder
        self._figures: list[SiteFigures] = []
        self._losses: dict[int, float] = {}
        self._moe: list[MoeTables] = []

    def __enter__(self) -> RecordingWriter:
        """Open the tables in an empty folder beside the final one."""
        remove_orphans(self.directory)
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        digits = max(2, len(str(self.n_layers - 1)))
        self._layers = [
            self._open(f"layer_{layer:0{digits}d}.arrow", LAYER_SCHEMA, "LayerOutlier")
            for layer in range(self.n_layers)
        ]
        self._any_layer = self._open("any_layer.arrow", ANY_LAYER_SCHEMA, "AnyLayerOutlier")
        return self

    def _open(self, name: str, schema: pa.Schema, table: str) -> pa.RecordBatchFileWriter:
        told = with_facts(schema, {"table": table, **self.ladder.facts})
        return pa.ipc.new_file(self.partial / name, told, options=COMPRESSION)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Move the folder to its place, or remove it if an exception came."""
        for writer in (*self._layers, self._any_layer):
            # On a full disk closing fails as well, and would hide why.
            with suppress(OSError) if kind is not None else nullcontext():
                writer.close()
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        for path in self.partial.glob("*.arrow"):
            seal(path)
        put_in_place(self.partial, self.directory)

    def add_chunk(self, chunk: FinishedChunk) -> None:
        """Write all that was seen of a chunk of sequences."""
        if chunk.moe is not None:
            self.add_moe(chunk.moe)
        for layer in sorted(chunk.layers):
            self.add_layer(layer, chunk.layers[layer], first_sequence=chunk.first_sequence)
        self.add_rows(chunk.rows, first_sequence=chunk.first_sequence, n_sequences=len(chunk.losses))
        self.add_losses(chunk.first_sequence, chunk.losses)

    def add_layer(self, layer: int, sketches: Sequence[TapSketch], *, first_sequence: int) -> None:
        """Write the rows of one layer of a chunk whose first sequence has that number in the corpus."""
        writer = self._layers[layer]
        for sequence in range(len(sketches[0].sketch.rms) if sketches else 0):
            writer.write_batch(layer_batch(layer, sketches, sequence, first_sequence=first_sequence))
        for sketch in sketches:
            figures = site_figures(layer, sketch, self.tokens, first_sequence=first_sequence, n_peaks=self.n_peaks)
            self._figures.append(figures)

    def add_moe(self, tables: MoeTables) -> None:
        """Note rows of experts and routers; they are written at the end."""
        self._moe.append(tables)

    def add_rows(self, rows: Mapping[View, OutlierRows], *, first_sequence: int, n_sequences: int) -> None:
        """Write rows over all layers of a chunk."""
        for sequence in range(n_sequences if rows else 0):
            self._any_layer.write_batch(any_layer_batch(rows, sequence, first_sequence=first_sequence))

    @property
    def d_model(self) -> int:
        """Features of the widest site so far: some models embed tokens in fewer than they compute with."""
        return max(int(figures.sites["d_model"].max()) for figures in self._figures)

    def add_losses(self, first_sequence: int, losses: list[float]) -> None:
        """Note the mean next-token loss, in nats, of each sequence of a chunk."""
        self._losses.update(enumerate(losses, start=first_sequence))

    def finish(self, run: Mapping[str, Any], decode: Decode) -> None:
        """Write the small tables and the provenance."""
        self._write_sites_and_peaks(decode)
        self._write_experts_and_routers()
        sequences = pl.DataFrame(
            {"sequence": list(self._losses), "loss_nats": list(self._losses.values())},
            schema_overrides={"loss_nats": pl.Float64},
        ).with_columns(n_tokens=pl.lit(self.tokens.shape[1]))
        if n_infinite := sequences["loss_nats"].is_infinite().sum():
            log.warning("the loss of %d sequences is infinite: sequences.parquet has none for them", n_infinite)
        sequences = sequences.with_columns(pl.when(pl.col("loss_nats").is_finite()).then("loss_nats"))
        self._write("sequences", schemas.Sequence, sequences.sort("sequence"))
        (self.partial / "run.json").write_text(json.dumps(run, indent=1) + "\n")

    def _write_sites_and_peaks(self, decode: Decode) -> None:
        key = ["tap", "layer", "sequence"]
        sites = small_table(figures.sites for figures in self._figures).sort(key)
        self._write("sites", schemas.Site, sites)
        if n_nonfinite := sites["n_nonfinite"].sum():
            log.warning("%d activations are NaN or infinite; sites.parquet says where", n_nonfinite)
        peaks = small_table(figures.peaks for figures in self._figures).sort([*key, "rank"])
        text = {token: decode([token]) for token in peaks["token"].unique().to_list()}
        peaks = peaks.with_columns(text=pl.col("token").replace_strict(text, return_dtype=pl.String))
        self._write("peaks", schemas.Peak, peaks)

    def _write_experts_and_routers(self) -> None:
        if not self._moe:
            return
        experts = pl.concat(tables.experts for tables in self._moe).sort("layer", "expert", "sequence")
        self._write("experts", schemas_moe.Expert, experts)
        routers = pl.concat(tables.routers for tables in self._moe).sort("layer", "sequence")
        self._write("routers", schemas_moe.Router, routers)

    def _write(self, name: str, schema: type[dy.Schema], table: pl.DataFrame) -> None:
        # Validation can cast too, and then takes half as long again.
        told = {"table": schema.__name__, **self.ladder.facts}
        write_table(schema.validate(schema.cast(table)), self.partial / f"{name}.parquet", told)
