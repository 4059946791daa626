"""The recordings of a study's parts put together: tables equal to those of one run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from outlier_moe.errors import StudyError
from outlier_moe.recording.kept_recordings import KeptRecordings, keep_merged
from outlier_moe.tables.files import check_table, read_table, schema_facts, seal, table_facts, with_facts, write_table
from outlier_moe.tables.recording import Recording, again, read_recording
from outlier_moe.tables.whole_outputs import whole_directory

COMPRESSION = pa.ipc.IpcWriteOptions(compression="zstd")

SORT_KEYS = {
    "sites.parquet": ["tap", "layer", "sequence"],
    "peaks.parquet": ["tap", "layer", "sequence", "rank"],
    "sequences.parquet": ["sequence"],
    "experts.parquet": ["layer", "expert", "sequence"],
    "routers.parquet": ["layer", "sequence"],
}
"""The tables that are not per layer, and how their rows are ordered."""

# What all shards of one recording have in common, and what is each one's own.
_OWN = ("n_sequences", "shard", "mode", "chunk", "device_name", "bytes_read", "n_layers_resumed")
_SUMMED = ("time_load_s", "time_run_s", "bytes_read")
_LARGEST = "peak_memory_bytes"


def merge_shards(directories: Sequence[Path], output: Path, *, kept: KeptRecordings | None = None) -> None:
    """Put the recordings of all parts of a study together.

    Args:
        directories: Their folders, in any order.
        output: The folder to write; it appears when it is whole.
        kept: The model's recordings so far: this one is kept among them, in the place of its shards.

    Raises:
        StudyError: If they are not of one model, text and set of options, or do not cover all sequences once.
    """
    if kept is not None and kept.take_up_whole(directories, output):
        return
    shards = sorted(map(read_recording, directories), key=_first)
    _refuse_strangers(shards)
    _refuse_gaps(shards)
    with whole_directory(output) as partial:
        names = _table_names(shards)
        for name in names:
            if name.endswith(".arrow"):
                _merge_arrow(shards, name, partial / name)
            else:
                _merge_parquet(shards, name, partial / name)
        (partial / "run.json").write_text(json.dumps(_merged_run([shard.run for shard in shards]), indent=1) + "\n")
    if kept is not None:
        keep_merged(kept, output)


def _first(recording: Recording) -> int:
    shard = recording.run.get("shard")
    if not isinstance(shard, dict):
        raise StudyError(
            "A recording is no part of another.",
            file=recording.directory / "run.json",
            key="shard",
            expected="which sequences of the study it holds",
            remedy="Record the shards with record_outliers.shards.",
        )
    return shard["first_sequence"]


def _refuse_strangers(shards: Sequence[Recording]) -> None:
    first = _common(shards[0].run)
    for shard in shards[1:]:
        other = _common(shard.run)
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise StudyError(
                    "Shards of different recordings cannot be merged.",
                    file=shard.directory / "run.json",
                    key=key,
                    expected=f"{first.get(key)}, as in {shards[0].directory.name}",
                    got=other.get(key),
                    remedy="Remove the folders of all shards of this model and record them again.",
                )


def _common(run: Mapping[str, Any]) -> dict[str, Any]:
    own = (*_OWN, *_SUMMED, _LARGEST)
    return {key: value for key, value in run.items() if key not in own} | {"n_shards": run["shard"]["n_shards"]}


def _refuse_gaps(shards: Sequence[Recording]) -> None:
    bounds = [(_first(shard), _first(shard) + shard.run["n_sequences"]) for shard in shards]
    n_sequences = shards[0].run["shard"]["n_sequences"]
    joined = bounds[0][0] == 0 and bounds[-1][1] == n_sequences
    if not joined or any(before[1] != after[0] for before, after in pairwise(bounds)):
        raise StudyError(
            "The shards do not cover the study's sequences once each.",
            file=shards[0].directory.parent,
            expected=f"0 to {n_sequences - 1}",
            got=", ".join(f"{start} to {stop - 1}" for start, stop in bounds),
            remedy="Remove the folders of all shards of this model and record them again.",
        )


def _table_names(shards: Sequence[Recording]) -> list[str]:
    names = [
        {path.name for path in shard.directory.iterdir() if path.suffix in (".arrow", ".parquet")} for shard in shards
    ]
    for shard, own in zip(shards, names, strict=True):
        odd = sorted((own ^ names[0]) | {name for name in own if name.endswith(".parquet") and name not in SORT_KEYS})
        if odd:
            raise StudyError(
                "A shard has not the tables that it should have.",
                file=shard.directory / odd[0],
                expected="the same tables in every shard",
                remedy="Remove the folders of all shards of this model and record them again.",
            )
    return sorted(names[0])


def _merge_arrow(shards: Sequence[Recording], name: str, output: Path) -> None:
    """One record batch after the other, as the run of all sequences would have written them."""
    for shard in shards:
        check_table(shard.directory / name, remedy=again(shard.directory))
    with pa.ipc.open_file(shards[0].directory / name) as reader:
        schema = with_facts(reader.schema, schema_facts(reader.schema) | shards[0].ladder.facts)
    with pa.ipc.new_file(output, schema, options=COMPRESSION) as writer:
        for shard in shards:
            with pa.ipc.open_file(shard.directory / name) as reader:
                for i in range(reader.num_record_batches):
                    writer.write_batch(_renumbered(reader.get_batch(i), _first(shard)))
    seal(output)


def _renumbered(batch: pa.RecordBatch, first_sequence: int) -> pa.RecordBatch:
    at = batch.schema.get_field_index("sequence")
    numbers = batch.column(at).to_numpy() + batch.schema.field(at).type.to_pandas_dtype()(first_sequence)
    return batch.set_column(at, batch.schema.field(at), pa.array(numbers, type=batch.schema.field(at).type))


def _merge_parquet(shards: Sequence[Recording], name: str, output: Path) -> None:
    paths = [shard.directory / name for shard in shards]
    frames = [read_table(path, remedy=again(path.parent)) for path in paths]
    renumbered = [
        frame.with_columns(pl.col("sequence") + pl.lit(_first(shard), frame.schema["sequence"]))
        for frame, shard in zip(frames, shards, strict=True)
    ]
    write_table(pl.concat(renumbered).sort(SORT_KEYS[name]), output, table_facts(paths[0]) | shards[0].ladder.facts)


def _merged_run(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What holds for all, sums and peaks over the shards, and under `shards` what each one says of its own run."""
    merged = {key: value for key, value in runs[0].items() if key != "shard"}
    merged["n_sequences"] = sum(run["n_sequences"] for run in runs)
    for key in _SUMMED:
        if all(key in run for run in runs):
            merged[key] = sum(run[key] for run in runs)
    if all(_LARGEST in run for run in runs):
        kinds = {kind for run in runs for kind in run[_LARGEST]}
        merged[_LARGEST] = {kind: max(run[_LARGEST].get(kind, 0) for run in runs) for kind in sorted(kinds)}
    own = (*_OWN, *_SUMMED, _LARGEST)
    merged["shards"] = [{key: run[key] for key in own if key in run} for run in runs]
    return merged
