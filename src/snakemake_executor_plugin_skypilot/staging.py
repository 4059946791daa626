"""What travels to a node: the workflow's sources, and a job's inputs, in one folder as they lie here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from snakemake_executor_plugin_skypilot.errors import rental_error

# In a folder that has this file SkyPilot leaves out what it names, and not what .gitignore does, as results are.
SKYIGNORE = ".skyignore"
# Names of files with secrets, which stay here even if somebody put them under version control.
SECRET_NAMES = (".env", ".env.*", ".netrc")


@dataclass(frozen=True)
class KeptBack:
    """Files with secrets, under whatever name a link gives them."""

    root: Path
    """The workflow's folder."""
    files: tuple[Path, ...] = ()
    """More of them than `SECRET_NAMES`; what bears the name of one is one too."""

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()

    @cached_property
    def _patterns(self) -> tuple[str, ...]:
        return (*SECRET_NAMES, *(file.name for file in self.files))

    def has(self, path: Path) -> bool:
        """Whether a file or folder is one of them, or lies in one."""
        real = path.resolve()
        below = real.relative_to(self._real_root).parts if real.is_relative_to(self._real_root) else (real.name,)
        if any(fnmatch(name, pattern) for name in {path.name, *below} for pattern in self._patterns):
            return True
        return any(file.exists() and real.exists() and real.samefile(file) for file in self.files)

    def check_input(self, path: str) -> str:
        """An input as seen from the workflow's folder.

        Raises:
            RentalError: If it is outside, or holds secrets.
        """
        relative = inside(path, self.root)
        if self.has(self.root / relative):
            raise rental_error(
                "A job's input is a file with secrets, which is not sent.", got=path, remedy="Use `secrets`."
            )
        return relative


def fill(folder: Path, sources: Iterable[str], inputs: Iterable[str], kept_back: KeptBack) -> None:
    """Put a job's files into a folder, by hard links where that is possible.

    Args:
        folder: An empty folder, which is the workflow's on the node.
        sources: Files that belong to the workflow; one that is not there or holds secrets is left out.
        inputs: Files and folders that the job reads; of a folder what holds secrets is left out.
        kept_back: What stays here, in the workflow's folder.

    Raises:
        RentalError: If an input lies elsewhere, or holds secrets.
    """
    root = kept_back.root
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SKYIGNORE).write_text("")
    for source in sorted(sources):
        path = Path(source)
        if ".." in path.parts or not (root / path).is_file() or kept_back.has(root / path):
            continue
        if path.name != SKYIGNORE:
            _place(root / path, folder / path)
    for given in inputs:
        relative = kept_back.check_input(given)
        if (root / relative).is_dir():
            shutil.copytree(
                root / relative,
                folder / relative,
                copy_function=_place,
                dirs_exist_ok=True,
                ignore=lambda where, names: {name for name in names if kept_back.has(Path(where) / name)},
            )
        else:
            _place(root / relative, folder / relative)


def inside(path: str, root: Path) -> str:
    """A path as seen from the workflow's folder.

    Raises:
        RentalError: If it is outside.
    """
    relative = os.path.relpath(os.path.join(root, path), root)
    if Path(relative).parts[:1] == ("..",):
        remedy = "Link or copy it into the workflow's folder, or name it through a storage plugin."
        raise rental_error(
            "A file that a node would have to get is outside of the workflow's folder.", got=path, remedy=remedy
        )
    return relative


def _place(source: str | Path, target: str | Path) -> str:
    """A file at another place: the same one where both are on one disk, a copy elsewhere; of a link what it names."""
    source, target = Path(source).resolve(), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return str(target)
