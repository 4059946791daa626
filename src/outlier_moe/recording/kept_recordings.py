"""Kept recordings, each under a name made from its inputs, so that none is lost.

`outliers` in a model's folder is the recording that the study asks for. Snakemake removes it when its rule starts. Its
files are in `recordings/{name}` beside it too, as second links that take no room, and stay there: a run that asks for
the same again takes it up, whatever the times of files are, and needs no GPU. To remove them is the user's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.sharding import WHOLE
from outlier_moe.machine.stages import link_tree, read_note
from outlier_moe.sources.origin import Origin, read_origin
from outlier_moe.tables.contents import DigestMemo, sha256_of
from outlier_moe.tables.whole_outputs import whole_directory, whole_file

log = logging.getLogger(__name__)

RUN = "run.json"
MADE_FROM = "made_from"
"""The key of run.json that says what a recording was made from."""
WHOLE_IS_KEPT = "whole_is_kept.json"
"""What stands for a shard's recording if that of all sequences is kept."""

# Recordings that do not say their revision are of this one.
_FIRST_REVISION = 1


def made_from(
    model_directory: Path,
    tokens: Mapping[str, Any],
    options: RecordOptions,
    *,
    revision: int = _FIRST_REVISION,
    digests: DigestMemo | None = None,
) -> dict[str, Any]:
    """What the figures of a recording depend on.

    Args:
        model_directory: What `fetch_model` wrote.
        tokens: What a file of tokens says of itself.
        options: What is recorded.
        revision: Of the stage.
        digests: Those of this machine's files that were read before.
    """
    # The tables' libraries, which the workflow's start does without.
    from outlier_moe.tables.recording import FORMAT

    origin = read_origin(model_directory)
    return {
        "format": FORMAT,
        "revision": revision,
        "checkpoint": _digest(_checkpoint(asdict(origin), model_directory, origin, digests)),
        "tokens": tokens["tokens_sha256"],
        "taps": list(options.taps),
        "floor": float(options.floor),
        "n_peaks": options.n_peaks,
        "dtype": (origin.dtype or "checkpoint") if options.dtype == "checkpoint" else options.dtype,
    }


def _checkpoint(
    source: Mapping[str, Any], model_directory: Path | None, origin: Origin | None, digests: DigestMemo | None = None
) -> Any:
    """What a checkpoint holds: of the hub and of packages by version, of a folder here by its files' digests."""
    files = sorted((file["name"], file["size"], file["sha256"]) for file in source["files"])
    if source["revision"] is not None:
        return [source["kind"], source["revision"], [file[:2] for file in files], source["trust_remote_code"]]
    if model_directory is None or origin is None:
        return None
    folder = model_directory / (origin.checkpoint or ".")
    read = sha256_of if digests is None else digests.sha256_of
    # Not what source.json says of them: they may have changed since they were fetched. A file without a size is not
    # there: it is what the others were converted from.
    contents = [(name, sha256 if size is None else read(folder / name)) for name, size, sha256 in files]
    return [contents, source["trust_remote_code"]]


def _made_from_of_run(
    run: Mapping[str, Any], directory: Path, model_directory: Path | None = None
) -> dict[str, Any] | None:
    """What a recording was made from, by its run.json or, for older versions, by its facts; None if unknown."""
    if MADE_FROM in run:
        return {**run[MADE_FROM], "shard": _shard_of_run(run)}
    try:
        # As above.
        import polars as pl

        from outlier_moe.tables.recording import FORMAT

        origin = _unchanged_since(directory / RUN, run["source"], model_directory)
        checkpoint = _checkpoint(run["source"], model_directory, origin)
        if checkpoint is None or run["format"] != FORMAT:
            return None
        return {
            "format": run["format"],
            "revision": _FIRST_REVISION,
            "checkpoint": _digest(checkpoint),
            "tokens": run["tokens"]["tokens_sha256"],
            "taps": run["taps"],
            "floor": float(run["floor"]),
            "n_peaks": pl.scan_parquet(directory / "peaks.parquet", glob=False)
            .select(pl.col("rank").max())
            .collect()
            .item()
            + 1,
            "dtype": run["dtype"],
            "shard": _shard_of_run(run),
        }
    except Exception as error:
        log.info("%s does not say what it was made from: %s", directory, error)
        return None


def _unchanged_since(recorded: Path, source: Mapping[str, Any], model_directory: Path | None) -> Origin | None:
    """A model in a local folder, if its files have the recorded sizes and are older than the recording."""
    if model_directory is None or source["revision"] is not None:
        return None
    origin = read_origin(model_directory)
    folder = model_directory / (origin.checkpoint or ".")
    time_ns = recorded.stat().st_mtime_ns
    for file in source["files"]:
        state = (folder / file["name"]).stat()
        if state.st_size != file["size"] or state.st_mtime_ns > time_ns:
            return None
    return origin


def _shard_of_run(run: Mapping[str, Any]) -> list[int] | None:
    shard = run.get("shard")
    return None if shard is None else [shard["number"], shard["n_shards"]]


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


class KeptRecordings:
    """The recordings of one model.

    Args:
        folder: Where they are.
        revision: Of the stage that records.
        digests: Those of this machine's files that were read before.
    """

    def __init__(self, folder: Path, *, revision: int = _FIRST_REVISION, digests: DigestMemo | None = None) -> None:
        self.folder = folder
        self.revision = revision
        self.digests = digests

    def take_up(self, made: Mapping[str, Any], options: RecordOptions, output: Path) -> bool:
        """Put a kept recording of the same inputs in place, if any; a shard may take that of all sequences."""
        if options.shard == WHOLE:
            return self._take_up({**made, "shard": None}, output)
        if self._find({**made, "shard": None}) is not None:
            with whole_directory(output) as partial:
                (partial / WHOLE_IS_KEPT).write_text(json.dumps(dict(made)))
            return True
        return self._take_up({**made, "shard": list(options.shard)}, output)

    def take_up_whole(self, shards: Sequence[Path], output: Path) -> bool:
        """Put the recording of all sequences in place, if its shards' notes say that it is kept."""
        for shard in shards:
            with suppress(OSError, ValueError):
                return self._take_up({**json.loads((shard / WHOLE_IS_KEPT).read_text()), "shard": None}, output)
        return False

    def _take_up(self, made: Mapping[str, Any], output: Path) -> bool:
        kept = self._find(made)
        if kept is None:
            return False
        with whole_directory(output) as partial:
            partial.rmdir()
            link_tree(kept, partial, or_copy=True)
        log.warning("%s: taken up from %s, as it was recorded of the same; remove that to record anew", output, kept)
        return True

    def _find(self, made: Mapping[str, Any]) -> Path | None:
        """The kept recording of the same inputs, if its files are unchanged."""
        kept = self.folder / _digest(made)[:16]
        files = read_note(_note(kept)).get("files")
        if not isinstance(files, dict):
            return None
        try:
            changed = [name for name, sha256 in files.items() if sha256_of(kept / name) != sha256]
        except OSError as error:
            changed = [str(error)]
        if changed:
            log.warning("%s is damaged (%s): it is recorded anew", kept, ", ".join(changed))
            self._remove(kept)
            return None
        return kept

    def keep(self, recording: Path, *, model_directory: Path | None = None) -> None:
        """Keep a recording, if it is not kept yet.

        Args:
            recording: Its folder.
            model_directory: The fetched model, for a recording that does not say what it was made from.
        """
        run = read_note(recording / RUN)
        if not run:
            return
        made = _made_from_of_run(run, recording, model_directory)
        name = _digest(made) if made is not None else sha256_of(recording / RUN)
        kept = self.folder / name[:16]
        if _note(kept).exists() and kept.is_dir():
            return
        with whole_directory(kept) as partial:
            partial.rmdir()
            link_tree(recording, partial, or_copy=True)
        files = {path.name: sha256_of(path) for path in sorted(kept.iterdir()) if path.is_file()}
        with whole_file(_note(kept)) as partial:
            partial.write_text(json.dumps({MADE_FROM: made, "files": files}, indent=1) + "\n")

    def remove_shards(self, made: Mapping[str, Any]) -> None:
        """Remove the shards of a recording that was merged."""
        for note in self.folder.glob("*.json"):
            other = read_note(note).get(MADE_FROM)
            if isinstance(other, dict) and other.get("shard") is not None and {**other, "shard": None} == made:
                self._remove(note.with_suffix(""))

    def _remove(self, kept: Path) -> None:
        _note(kept).unlink(missing_ok=True)
        shutil.rmtree(kept, ignore_errors=True)


def keep_merged(kept: KeptRecordings, recording: Path) -> None:
    """Keep a merged recording, and remove its shards."""
    kept.keep(recording)
    made = _made_from_of_run(read_note(recording / RUN), recording)
    if made is not None:
        kept.remove_shards(made)


def _note(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.json")
