"""The header of a safetensors file, checked against the file without reading tensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from outlier_moe.errors import StudyError

ITEM_BYTES: Mapping[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
    # Two values.
    "F4": 1,
}
"""The format's dtypes, and what one item of a tensor takes."""

# What is saved or served under a safetensors name and is something else, by its first bytes.
_CONTENTS: Mapping[bytes, tuple[str, str]] = {
    b"version https://git-lfs": (
        "a pointer of Git LFS: the weights were not downloaded with the repository",
        "Run `git lfs pull` in the repository, or download it with `hf download`.",
    ),
    b"<": ("a web page", "Download the file itself, with `hf download`."),
    b"PK\x03\x04": ("a PyTorch file (zip of pickles)", "Convert it with save_pretrained; pickles are never read."),
    b"\x80": ("a pickle", "Convert it with save_pretrained; pickles are never read."),
    b"GGUF": ("a GGUF file", "Register it as one: source: {kind: gguf, path: FILE}."),
    b"\x1f\x8b": ("a gzip archive", "Unpack it."),
}


class TensorEntry(NamedTuple):
    """Where a tensor is in its file."""

    dtype: str
    """Dtype by the format's name, such as BF16."""
    shape: tuple[int, ...]
    """As the file states it; F4 counts single values, two to a byte."""
    start: int
    """Byte of the file at which it begins."""
    stop: int
    """The byte after its last."""

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape of the tensor that holds it, which has two F4 values in one element."""
        return (*self.shape[:-1], self.shape[-1] // 2) if self.dtype == "F4" else self.shape


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file, checked against its length.

    Raises:
        StudyError: If there is no such file, it is cut short, or its header is not one.
    """
    try:
        with readable(path) as file:
            size = os.fstat(file.fileno()).st_size
            _refuse_other_content(path, os.pread(file.fileno(), 64, 0))
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise _broken(path, f"a header of {length} bytes in a file of {size}")
            header: Any = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"a header that is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _broken(path, f"a header that is a {type(header).__name__}")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields, first=8 + length) for name, fields in header.items()}
    end = max((entry.stop for entry in entries.values()), default=8 + length)
    if end != size:
        problem = "A shard of the checkpoint is cut short." if end > size else "A shard has bytes that are no tensor's."
        raise StudyError(problem, file=path, expected=f"{end} bytes", got=f"{size} bytes", remedy=whole_again(path))
    return entries


def whole_again(path: Path) -> str:
    """The remedy for a damaged file: one from the hub is downloaded again, a user's own is not."""
    if any(part.startswith("models--") or part.endswith(".weights") for part in path.parts):
        return (
            "Remove the file and what it is a link to, and run again: it is downloaded anew. Finished layers are kept."
        )
    return "Copy, download or save the file anew. Layers that a streamed run has finished are kept."


def _refuse_other_content(path: Path, start: bytes) -> None:
    if not start:
        raise _broken(path, "an empty file")
    for beginning, (what, remedy) in _CONTENTS.items():
        # A header's length comes first, whose lowest byte may be any; what follows it tells a header.
        if start.startswith(beginning) and start[8:9] != b"{":
            raise _broken(path, what, remedy=remedy)


@contextmanager
def readable(path: Path) -> Iterator[FileIO]:
    """A file of a checkpoint, opened.

    Raises:
        StudyError: If it is not there, or cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except FileNotFoundError:
        raise StudyError("A shard of the checkpoint is not there.", file=path, remedy=whole_again(path)) from None
    except OSError as error:
        remedy = "Make the file readable for this user, and look to the disk or network drive that it lies on."
        raise StudyError(
            "A shard of the checkpoint cannot be read.", file=path, got=str(error), remedy=remedy
        ) from error


def _entry(path: Path, name: str, fields: Mapping[str, Any], *, first: int) -> TensorEntry:
    try:
        dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
        start, stop = (first + int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise _broken(path, f"an entry without dtype, shape or offsets: {fields}", key=name) from None
    entry = TensorEntry(dtype, shape, start, stop)
    if dtype not in ITEM_BYTES:
        raise _broken(path, f"dtype {dtype}", key=name, remedy="Take a checkpoint of " + ", ".join(ITEM_BYTES) + ".")
    if math.prod(entry.torch_shape) * ITEM_BYTES[dtype] != stop - start:
        raise _broken(path, f"{stop - start} bytes for {dtype} {list(shape)}", key=name)
    return entry


def _broken(path: Path, got: str, *, key: str | None = None, remedy: str | None = None) -> StudyError:
    return StudyError(
        "A shard of the checkpoint is no safetensors file.",
        file=path,
        key=key,
        expected="a header that gives dtype, shape and offsets of each tensor",
        got=got,
        remedy=remedy or whole_again(path),
    )
