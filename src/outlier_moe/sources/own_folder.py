"""A local model folder: which files are copied, and which are refused."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import file_names, small_files

# What a disk says that is written to, not read.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_LINK_REMEDY = "Have the link point to the file, or copy the file itself; `cp -L` and `rsync -L` follow links."


def refuse_no_folder(folder: Path, *, key: str, said: str) -> None:
    """Refuse a path that is not a folder, or a folder with an adapter.

    Raises:
        StudyError: If it is so.
    """
    if folder.is_dir():
        adapter = folder / "adapter_config.json"
        if adapter.is_file() and any(folder.glob("model*.safetensors")):
            raise StudyError(
                "A folder holds a model and an adapter, so that it is unclear which is meant.",
                file=adapter,
                key=f"{key}.path",
                expected="a model alone",
                remedy="Move the adapter's files away, or merge it (merge_and_unload) and register the merged model.",
            )
        return
    problem, remedy = "A model's folder does not exist.", "Correct the path; a relative one starts where you run."
    if folder.is_symlink() and not folder.exists():
        problem, remedy = "A model's folder is a link to nothing.", f"It leads to {folder.readlink()}: have it lead on."
    elif folder.suffix == ".gguf":
        problem, remedy = "A GGUF file is no folder.", f"Write source: {{kind: gguf, path: {said}}}."
    elif folder.is_file():
        problem, remedy = "A file is in the place of a model's folder.", f"Name its folder: {folder.parent}"
    raise StudyError(
        problem,
        file=folder,
        key=f"{key}.path",
        expected="a folder with config.json, tokenizer and safetensors",
        got=said,
        remedy=remedy,
    )


def copy_small_files(folder: Path, directory: Path, *, with_code: bool) -> list[str]:
    """Copy configuration and tokenizer; returns the files' names.

    Raises:
        StudyError: If one of them is a link to nothing, a pointer of Git LFS, or cannot be read.
    """
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists() and small_files([path.name], with_code=with_code):
            raise StudyError(
                "A file of a model is a link to nothing.",
                file=path,
                expected="a file, or a link to one",
                got=f"a link to {path.readlink()}",
                remedy=_LINK_REMEDY,
            )
    names = small_files(file_names(folder), with_code=with_code)
    for name in names:
        copy_whole(folder / name, directory / name)
    return names


def copy_whole(source: Path, target: Path) -> None:
    """Copy a small file of a model.

    Raises:
        StudyError: If it is a pointer of Git LFS, or cannot be read.
        OSError: If the target cannot be written, with its name.
    """
    try:
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OSError(error.errno, error.strerror, str(target)) from error
        remedy = "Make the file readable for this user."
        raise StudyError("A file of a model cannot be read.", file=source, got=str(error), remedy=remedy) from error
    if start.startswith(b"version https://git-lfs"):
        raise StudyError(
            "A file of a model is a pointer of Git LFS: the file itself was not downloaded.",
            file=source,
            expected="the file's content",
            got="version https://git-lfs...",
            remedy="Run `git lfs pull` in the repository, or download it with `hf download`.",
        )
