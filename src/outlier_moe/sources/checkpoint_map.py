"""Which file counts for each tensor of a checkpoint: the one answer for planning, and for both ways to run a model.

- A single `model.safetensors` counts as transformers counts it. If shards of an index lie beside it, both must hold the
  same tensors; otherwise it is unclear which of the two is the model.
- With an index, the file that it names for a tensor counts. A copy of the tensor in another file is ignored. So is a
  tensor that the index does not list, unless the model lacks it: then the index is incomplete.
- Without an index, a whole set of numbered shards is read, if no tensor lies in two of them.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import INDEX, WEIGHTS, file_names, read_index, weight_files
from outlier_moe.sources.safetensors_header import TensorEntry, read_header

log = logging.getLogger(__name__)


class CheckpointMap(NamedTuple):
    """The tensors of a checkpoint and the files that count for them."""

    file_of: Mapping[str, str]
    """The file of each tensor."""
    headers: Mapping[str, Mapping[str, TensorEntry]]
    """The tensors of each file that is read, ignored ones included."""
    has_index: bool
    """Whether the files are those of an index."""

    @property
    def as_transformers_reads(self) -> bool:
        """Whether transformers, given the folder, takes just the tensors that count."""
        return (self.has_index or WEIGHTS in self.headers) and not self.ignored

    def counting(self) -> list[dict[str, TensorEntry]]:
        """The tensors of each file that count there."""
        return [
            {name: entry for name, entry in header.items() if self.file_of.get(name) == file}
            for file, header in self.headers.items()
        ]

    @property
    def ignored(self) -> Mapping[str, tuple[str, ...]]:
        """The tensors of each file that do not count there."""
        found = {file: ignored_tensors(file, header, self.file_of) for file, header in self.headers.items()}
        return {file: names for file, names in found.items() if names}


def ignored_tensors(file: str, held: Iterable[str], file_of: Mapping[str, str]) -> tuple[str, ...]:
    """The tensors of a file that do not count there: the index places them elsewhere, or does not list them."""
    return tuple(sorted(name for name in held if file_of.get(name) != file))


def unlisted_tensors(ignored: Mapping[str, Collection[str]], file_of: Mapping[str, str]) -> dict[str, str]:
    """The ignored tensors that count nowhere, with the file that holds them."""
    return {name: file for file, names in ignored.items() for name in names if name not in file_of}


def warn_of_ignored(ignored: Mapping[str, Collection[str]], file_of: Mapping[str, str], *, directory: Path) -> None:
    """Name the tensors that are left out: copies that the index places elsewhere, and those that it does not list."""
    for file, names in ignored.items():
        stale = [name for name in names if name in file_of]
        unlisted = [name for name in names if name not in file_of]
        if stale:
            first = f"{_some(stale)}; the index places {stale[0]} in {file_of[stale[0]]}"
            log.warning("%s: copies of tensors are ignored: %s", directory / file, first)
        if unlisted:
            log.warning("%s: the index does not list these tensors, so they are ignored: %s", file, _some(unlisted))


def map_checkpoint(directory: Path) -> CheckpointMap:
    """The files that count in a folder, each as long as its header says and holding what it should.

    Raises:
        StudyError: If there are none, one is missing, truncated or damaged, or it is unclear which of two counts.
    """
    names = file_names(directory)
    weights = weight_files(names, directory, origin=str(directory))
    headers = {name: read_header(directory / name) for name in weights}
    if weights == [WEIGHTS]:
        if INDEX in names:
            _refuse_another_model(directory, names, headers[WEIGHTS])
        return CheckpointMap(dict.fromkeys(headers[WEIGHTS], WEIGHTS), headers, has_index=False)
    if INDEX not in names:
        log.warning("%s: there is no %s; the shards are read as they are numbered.", directory, INDEX)
        return CheckpointMap(place_tensors(directory, headers), headers, has_index=False)
    file_of = read_index(directory / INDEX)
    for shard in weights:
        refuse_lacking(directory / shard, headers[shard], file_of)
    _compare_total(directory / INDEX, file_of, headers)
    return CheckpointMap(file_of, headers, has_index=True)


def refuse_lacking(shard: Path, held: Collection[str], file_of: Mapping[str, str]) -> None:
    """Refuse a shard without a tensor that the index places in it.

    Raises:
        StudyError: If one is lacking.
    """
    lacking = sorted(name for name, file in file_of.items() if file == shard.name and name not in held)
    if lacking:
        raise StudyError(
            "A file of a checkpoint lacks a tensor that the index places in it.",
            file=shard,
            key=_some(lacking),
            expected=f"{sum(file == shard.name for file in file_of.values())} tensors, as {INDEX} says",
            got=f"{len(held)} tensors",
            remedy=f"The index and the file are of different saves. Take both from the same one, or correct {INDEX}.",
        )


def _refuse_another_model(directory: Path, names: Collection[str], held: Collection[str]) -> None:
    """Refuse a single file and the shards of an index if they hold different tensors."""
    file_of = read_index(directory / INDEX)
    if set(file_of.values()) == {WEIGHTS} and (lacking := sorted(file_of.keys() - held)):
        refuse_lacking(directory / WEIGHTS, held, dict.fromkeys(lacking, WEIGHTS))
    if not set(file_of.values()) <= set(names):
        log.warning("%s: the index is not used, since its shards are not there; %s is.", directory / INDEX, WEIGHTS)
        return
    if different := sorted(file_of.keys() ^ set(held)):
        raise StudyError(
            f"A checkpoint has {WEIGHTS} and shards, and they hold different tensors.",
            file=directory,
            key=_some(different),
            expected="one of the two, or the same tensors in both",
            remedy=f"Move {WEIGHTS} away, or {INDEX} and its shards: whichever is not the model.",
        )
    if set(file_of.values()) != {WEIGHTS}:
        log.warning("%s: %s is read, and the shards of the index are not.", directory, WEIGHTS)


def place_tensors(directory: Path, headers: Mapping[str, Collection[str]]) -> Mapping[str, str]:
    """The file of each tensor where no index says it.

    Raises:
        StudyError: If a tensor lies in two.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for shard, header in headers.items():
        for name in header:
            files[name].append(shard)
    for name, held_by in files.items():
        if len(held_by) > 1:
            raise StudyError(
                "A tensor lies in two shards, and no index says which one counts.",
                file=directory / held_by[0],
                key=name,
                expected=f"each tensor once, or {INDEX}",
                got=f"in {' and '.join(held_by)}",
                remedy=f"Put the checkpoint's {INDEX} beside the shards.",
            )
    return {name: held_by[0] for name, held_by in files.items()}


def _compare_total(index: Path, file_of: Mapping[str, str], headers: Mapping[str, Mapping[str, TensorEntry]]) -> None:
    """Warn if the index says another size than its tensors have; its names decide, and not its total."""
    metadata = json.loads(index.read_text(encoding="utf-8")).get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    entries = [headers[file][name] for name, file in file_of.items()]
    found = sum(entry.stop - entry.start for entry in entries)
    if isinstance(said, int | float) and said != found:
        log.warning("%s: total_size is %d, but the tensors take %d bytes.", index, said, found)


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
