"""The files of a checkpoint: which of a repository's are needed, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from outlier_moe.errors import StudyError
from outlier_moe.sources.safetensors_header import FETCH_AGAIN, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Configuration and tokenizer; those of other frameworks' weights and of subfolders (`original/`, `onnx/`) are not.
_SMALL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "vocab.bpe", "LICENSE*")
_FOREIGN = ("pytorch_model*", "flax_model*", "tf_model*", "consolidated*")


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


def weight_files(names: Collection[str], directory: Path, *, origin: str) -> list[str]:
    """The safetensors files that make up a checkpoint.

    Only those that transformers would read: some repositories hold the same weights twice.

    Args:
        names: All files of the repository or folder.
        directory: Where its index lies, if it has one.
        origin: How to name the repository in a message.

    Raises:
        StudyError: If there are none, or the index names one that is not there.
    """
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        shards = sorted(set(read_index(directory / INDEX).values()))
        absent = [shard for shard in shards if shard not in names]
        if absent:
            raise StudyError(
                "The index of a checkpoint names a file that is not there.",
                file=f"{origin}: {INDEX}",
                expected=f"{len(shards)} files, {absent[0]} among them",
                got=f"{len(shards) - len(absent)} of them",
                remedy="Take another revision, or complete the checkpoint.",
            )
        return shards
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")))
    raise StudyError(
        "A checkpoint has no safetensors.",
        file=origin,
        expected=f"{WEIGHTS}, or {INDEX} and what it names",
        got=", ".join(pickles[:4]) if pickles else "no weights",
        remedy="Other formats can run code and are never read. Name a revision that has safetensors (the hub's own "
        "conversion often waits as refs/pr/N), or convert the checkpoint and register its folder.",
    )


def verify_checkpoint(directory: Path) -> list[Path]:
    """The safetensors files of a folder, each as long as its header says and holding what the index says.

    Raises:
        StudyError: If the folder has none, or one is missing, truncated or damaged.
    """
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    weights = weight_files(names, directory, origin=str(directory))
    tensors = {name: set(read_header(directory / name)) for name in weights}
    if weights != [WEIGHTS]:
        for tensor, shard in read_index(directory / INDEX).items():
            if tensor not in tensors[shard]:
                raise StudyError(
                    "A file of a checkpoint lacks a tensor that the index places in it.",
                    file=directory / shard,
                    key=tensor,
                    remedy="The index and the files belong to different versions; fetch them again.",
                )
    return [directory / name for name in weights]


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            "The index of a checkpoint cannot be read.",
            file=path,
            key="weight_map",
            expected="the name of a file beside the index for each tensor",
            got=f"{type(error).__name__}: {error}",
            remedy=FETCH_AGAIN,
        ) from error
    return weight_map
