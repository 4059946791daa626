"""Times of files as Snakemake left them, put back where a copy has lost them.

Snakemake tells by their times whether a file is older than what it was made from. `cp -r`, `git checkout` and `rsync`
without `-t` change all of them. So the end of a run notes the time and the digest of every result; the next start gives
a file whose digest is the same its time back. A run that was killed leaves no such notes, and none are put back.

With what parameters a result was made stands in `.snakemake` alone. A copy without it would take every change of the
configuration or of a text for made already, so the results have a copy of these records, which comes with them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from outlier_moe.machine.stages import forget
from outlier_moe.recording.kept_recordings import RUN, KeptRecordings
from outlier_moe.tables.contents import sha256_of
from outlier_moe.tables.whole_outputs import whole_file

log = logging.getLogger(__name__)

NOTES = ".times.json"
OPEN = ".times.open.json"
RECORDINGS = "recordings"
RECORDS = ".records"
_METADATA = Path(".snakemake/metadata")
_TIMESTAMP = ".snakemake_timestamp"


def restore_times(folders: Sequence[Path]) -> int:
    """Restore the times of files whose contents are as the last run left them.

    Args:
        folders: The folders of results; the notes are in the first.

    Returns:
        How many files had another time.
    """
    notes = _read(folders[0] / NOTES)
    n_restored = 0
    for name, (size, time_ns, sha256) in notes.items():
        path = Path(name)
        with suppress(OSError):
            state = path.stat()
            if state.st_size == size and state.st_mtime_ns != time_ns and sha256_of(path) == sha256:
                os.utime(path, ns=(state.st_atime_ns, time_ns))
                n_restored += 1
    return n_restored


def restore_records(results: Path, metadata: Path = _METADATA) -> bool:
    """Restore Snakemake's records in a copy that lacks them.

    Args:
        results: The folder of the results.
        metadata: Where Snakemake looks for its records.

    Returns:
        Whether there were none and now are.
    """
    if not (results / NOTES).is_file() or not (results / RECORDS).is_dir():
        return False
    if any(path.is_file() for path in metadata.rglob("*")):
        return False
    with suppress(OSError):
        shutil.copytree(results / RECORDS, metadata, dirs_exist_ok=True)
        return True
    return False


def note_records(results: Path, metadata: Path = _METADATA) -> None:
    """Copy Snakemake's records beside the results."""
    # Without them a copy's changes go unnoticed, which is no reason for this run to fail.
    with suppress(OSError):
        shutil.rmtree(results / RECORDS, ignore_errors=True)
        shutil.copytree(metadata, results / RECORDS)


def begin_changes(folders: Sequence[Path]) -> None:
    """Invalidate the notes, as files are about to change; digests of unchanged files stay."""
    with suppress(OSError):
        (folders[0] / NOTES).replace(folders[0] / OPEN)


def note_times(folders: Sequence[Path]) -> None:
    """Note the time and the digest of every file of the results."""
    before = {**_read(folders[0] / OPEN), **_read(folders[0] / NOTES)}
    notes: dict[str, list[Any]] = {}
    for path in (path for folder in folders for path in _results(folder)):
        with suppress(OSError):
            state = path.stat()
            stamp = [state.st_size, state.st_mtime_ns]
            known = before.get(str(path), [])
            notes[str(path)] = known if known[:2] == stamp else [*stamp, sha256_of(path)]
    # Without them a copy is made again, which is no reason for a run to fail.
    with suppress(OSError):
        with whole_file(folders[0] / NOTES) as partial:
            partial.write_text(json.dumps(notes))
        (folders[0] / OPEN).unlink(missing_ok=True)


def keep_all_recordings(results: Path, models: Path) -> None:
    """Keep the recordings of all models, older ones too, so that none is lost when its rule starts.

    Args:
        results: Their folder.
        models: The folder of the fetched models.
    """
    for run in sorted(results.glob(f"*/outliers/{RUN}")):
        with suppress(OSError):
            model = run.parent.parent
            KeptRecordings(model / RECORDINGS).keep(run.parent, model_directory=models / model.name)


def forget_known(folders: Sequence[Path]) -> None:
    """Remove the outputs that stages kept until Snakemake recorded them."""
    for note in (path for folder in folders for path in folder.rglob(".*.kept.json")):
        try:
            outputs = [Path(output) for output in json.loads(note.read_text())["outputs"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        with suppress(OSError):
            forget(outputs)


def _results(folder: Path) -> Iterator[Path]:
    """The files of the results, without hidden files (except Snakemake's markers) and kept recordings."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != RECORDINGS]
        for name in names:
            path = Path(place, name)
            if (not name.startswith(".") or name == _TIMESTAMP) and path.is_file():
                yield path


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        read = json.loads(path.read_text())
        return {name: entry for name, entry in read.items() if len(entry) == 3}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
