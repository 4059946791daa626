"""What travels to a node: the workflow's sources, and a job's inputs, in one folder as they lie here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from snakemake_executor_plugin_skypilot.errors import told

# In a folder that has this file SkyPilot leaves out what it names, and not what .gitignore does, as results are.
SKYIGNORE = ".skyignore"
# Names of files with secrets, which stay here even if somebody put them under version control.
SECRET_NAMES = (".env", ".env.*", ".netrc")


def fill(
    folder: Path, sources: Iterable[str], inputs: Iterable[str], *, root: Path, kept_back: Iterable[str] = ()
) -> None:
    """Put a job's files into a folder, by hard links where that is possible.

    Args:
        folder: An empty folder, which is the workflow's on the node.
        sources: Files that belong to the workflow; one that is not there is left out.
        inputs: Files and folders that the job reads.
        root: The workflow's folder here.
        kept_back: Names of more files with secrets.

    Raises:
        RentalError: If an input lies elsewhere, or holds secrets.
    """
    secret = (*SECRET_NAMES, *kept_back)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SKYIGNORE).write_text("")
    for source in sorted(sources):
        path = Path(source)
        if ".." in path.parts or _is_named(path.name, secret) or not (root / path).is_file():
            continue
        if path.name != SKYIGNORE:
            _place(root / path, folder / path)
    for given in inputs:
        relative = inside(given, root)
        if _is_named(Path(relative).name, secret):
            raise told("A job's input is a file with secrets, which is not sent.", got=given, remedy="Use `secrets`.")
        if (root / relative).is_dir():
            ignored = shutil.ignore_patterns(*secret)
            shutil.copytree(
                root / relative, folder / relative, copy_function=_place, dirs_exist_ok=True, ignore=ignored
            )
        else:
            _place(root / relative, folder / relative)


def _is_named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def inside(path: str, root: Path) -> str:
    """A path as seen from the workflow's folder.

    Raises:
        RentalError: If it is outside.
    """
    relative = os.path.relpath(os.path.join(root, path), root)
    if Path(relative).parts[:1] == ("..",):
        remedy = "Link or copy it into the workflow's folder, or name it through a storage plugin."
        raise told("A file that a node would have to get is outside of the workflow's folder.", got=path, remedy=remedy)
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
