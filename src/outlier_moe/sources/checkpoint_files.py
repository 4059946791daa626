"""The files of a checkpoint: which of a repository's or a folder's are needed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from outlier_moe.errors import StudyError
from outlier_moe.sources.other_formats import no_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Configuration and tokenizer; those of other frameworks' weights and of subfolders (`original/`, `onnx/`) are not.
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "vocab.bpe", "LICENSE*")
_FOREIGN = ("pytorch_model*", "flax_model*", "tf_model*", "consolidated*")

_NUMBERED = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")


def small_files(names: Collection[str], *, with_code: bool = False) -> list[str]:
    """The files of a repository that are not weights: configuration, tokenizer, weight index, licence.

    Args:
        names: All its files.
        with_code: Whether Python code is among what is wanted.
    """
    patterns = (*_SMALL, "*.py") if with_code else _SMALL
    return sorted(
        name
        for name in names
        if "/" not in name
        and any(fnmatch(name, pattern) for pattern in patterns)
        and not any(fnmatch(name, pattern) for pattern in _FOREIGN)
    )


def file_names(directory: Path) -> set[str]:
    """The files of a folder, which may be links to files; no folders, and no links to nothing."""
    return {path.name for path in directory.iterdir() if path.is_file()} if directory.is_dir() else set()


def weight_files(names: Collection[str], directory: Path, *, origin: str) -> list[str]:
    """The safetensors files that make up a checkpoint.

    Only those that transformers would read: some repositories hold the same weights twice. A whole set of numbered
    shards needs no index.

    Args:
        names: All files of the repository or folder.
        directory: Where its index lies, if it has one; a folder of one's own, or what is here of a repository.
        origin: How to name the repository in a message.

    Raises:
        StudyError: If there are none, or the index names one that is not there.
    """
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        shards = sorted(set(read_index(directory / INDEX).values()))
        if absent := [shard for shard in shards if shard not in names]:
            raise _absent_shard(absent[0], shards, n_absent=len(absent), directory=directory, origin=origin)
        return shards
    return _numbered_shards(names, origin) or _refuse(names, directory, origin)


def _refuse(names: Collection[str], directory: Path, origin: str) -> list[str]:
    raise no_safetensors(names, directory, origin=origin)


def _numbered_shards(names: Collection[str], origin: str) -> list[str]:
    """The shards `model-00001-of-0000N.safetensors` that lie there without an index; none if there are none."""
    sets: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            sets[match[2]][int(match[1])] = name
    if not sets:
        return []
    if len(sets) > 1:
        raise StudyError(
            "A checkpoint has shards of several saves, and no index that says which ones count.",
            file=origin,
            expected=f"{INDEX}, or the shards of one save",
            got=", ".join(f"{len(shards)} of {int(total)}" for total, shards in sorted(sets.items())),
            remedy=f"Put {INDEX} of the save that you want beside the shards, or move those of the others away.",
        )
    ((total, shards),) = sets.items()
    if absent := sorted(set(range(1, int(total) + 1)) - set(shards)):
        raise StudyError(
            "A checkpoint lacks some of its shards.",
            file=origin,
            expected=f"{int(total)} files model-{absent[0]:05d}-of-{total}.safetensors and so on, and {INDEX}",
            got=f"{len(shards)} of them",
            remedy=f"Copy or download the lacking ones: number {', '.join(map(str, absent[:6]))}.",
        )
    return [shards[number] for number in sorted(shards)]


def _absent_shard(shard: str, shards: list[str], *, n_absent: int, directory: Path, origin: str) -> StudyError:
    path = directory / shard
    got = f"{len(shards) - n_absent} of them"
    remedy = "Copy or download the lacking files, or take another revision that is complete."
    if path.is_symlink():
        got = f"a link to {path.readlink()}, which is not there"
        remedy = "Have the link point to the file, or copy the file itself; `cp -L` and `rsync -L` follow links."
    elif path.is_dir():
        got, remedy = f"a folder named {shard}", "Put the file of that name in place of the folder."
    return StudyError(
        "The index of a checkpoint names a file that is not there.",
        file=f"{origin}: {INDEX}",
        expected=f"{len(shards)} files, {shard} among them",
        got=got,
        remedy=remedy,
    )


def read_index(path: Path) -> dict[str, str]:
    """The file that holds each tensor, as the index of a sharded checkpoint says.

    Raises:
        StudyError: If it cannot be read, or does not name files beside it.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError("weight_map is no mapping of names to files")
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ValueError(f"{shard!r} for the file of {name}")
            if not shard.endswith(".safetensors"):
                raise ValueError(f"{shard} for {name}, which is no safetensors file")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StudyError(
            "The index of a checkpoint cannot be read.",
            file=path,
            key="weight_map",
            expected="the name of a safetensors file beside the index for each tensor",
            got=f"{type(error).__name__}: {error}",
            remedy="Copy or download the index anew, or write it anew with save_pretrained.",
        ) from error
    return weight_map
