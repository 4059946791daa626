"""Reading single tensors of a safetensors file, each byte once.

The safetensors package keeps the interpreter's lock while it reads (110 ms for 64 MB), so that a layer could not be
read while another computes. The format is a header of names, dtypes, shapes and offsets, and then the bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outlier_moe.errors import StudyError

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}

READ_BYTES = 2**22

FETCH_AGAIN = "Fetch the model again; the layers that are finished are kept."


class TensorEntry(NamedTuple):
    """Where a tensor is in its file."""

    dtype: str
    """The format's name of it, such as BF16."""
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
        with _readable(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise _broken(path, f"a header of {length} bytes in a file of {size}")
            header: Any = json.loads(file.read(length))
    except ValueError as error:
        raise _broken(path, f"a header that is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _broken(path, f"a header that is a {type(header).__name__}")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields, first=8 + length) for name, fields in header.items()}
    end = max((entry.stop for entry in entries.values()), default=8 + length)
    if end != size:
        problem = "A shard of the checkpoint is cut short." if end > size else "A shard has bytes that are no tensor's."
        raise StudyError(problem, file=path, expected=f"{end} bytes", got=f"{size} bytes", remedy=FETCH_AGAIN)
    return entries


@contextmanager
def _readable(path: Path) -> Iterator[FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except FileNotFoundError:
        raise StudyError("A shard of the checkpoint is not there.", file=path, remedy=FETCH_AGAIN) from None
    except OSError as error:
        raise StudyError(
            "A shard of the checkpoint cannot be read.", file=path, got=str(error), remedy=FETCH_AGAIN
        ) from error


def _entry(path: Path, name: str, fields: Mapping[str, Any], *, first: int) -> TensorEntry:
    try:
        dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
        start, stop = (first + int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise _broken(path, f"an entry without dtype, shape or offsets: {fields}", key=name) from None
    entry = TensorEntry(dtype, shape, start, stop)
    if dtype not in TORCH_DTYPES:
        raise _broken(path, f"dtype {dtype}", key=name)
    if math.prod(entry.torch_shape) * TORCH_DTYPES[dtype].itemsize != stop - start:
        raise _broken(path, f"{stop - start} bytes for {dtype} {list(shape)}", key=name)
    return entry


def _broken(path: Path, got: str, *, key: str | None = None) -> StudyError:
    return StudyError(
        "A shard of the checkpoint is no safetensors file.",
        file=path,
        key=key,
        expected="a header that gives dtype, shape and offsets of each tensor",
        got=got,
        remedy=FETCH_AGAIN,
    )


def read_tensors(path: Path, entries: Mapping[str, TensorEntry], names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a file, each of whose bytes is read, and then mapped where it lies in the system's cache.

    So they take no memory of the process, and lie where they do in a resident model, whose files transformers maps as
    well: MKL's products of the same matrices differ in their last bits with the alignment of these. Reading first
    keeps the wait for the disk in this call, and makes a file that is cut short an error in place of a crash.

    Args:
        path: The file.
        entries: Its header.
        names: The tensors wanted.

    Raises:
        StudyError: If the file cannot be read, or ends before a tensor does.
    """
    chosen = sorted(((name, entries[name]) for name in names), key=lambda item: item[1].start)
    with _readable(path) as file:
        for start, stop in _ranges(entry for _, entry in chosen):
            _read(file.fileno(), start, stop, path=path)
        # Private to the process and writable, as tensors are; what nobody writes to takes no memory of its own.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _mapped(content, entry) for name, entry in chosen}


def _ranges(entries: Iterable[TensorEntry]) -> Iterator[tuple[int, int]]:
    """The bytes of tensors in order, neighbours joined."""
    start = stop = 0
    for entry in entries:
        if entry.start != stop:
            yield start, stop
            start = entry.start
        stop = entry.stop
    yield start, stop


def _read(descriptor: int, start: int, stop: int, *, path: Path) -> None:
    """Have the system read a part of a file into its cache."""
    buffer = memoryview(bytearray(min(READ_BYTES, stop - start)))
    while start < stop:
        n_read = os.preadv(descriptor, [buffer[: stop - start]], start)
        if n_read == 0:
            raise StudyError(
                "A shard of the checkpoint is cut short.",
                file=path,
                expected=f"at least {stop} bytes",
                got=f"{start} bytes",
                remedy=FETCH_AGAIN,
            )
        start += n_read


def _mapped(content: mmap.mmap, entry: TensorEntry) -> Tensor:
    dtype = TORCH_DTYPES[entry.dtype]
    if entry.start == entry.stop:
        return torch.empty(entry.torch_shape, dtype=dtype)
    stored = torch.frombuffer(content, dtype=torch.uint8, offset=entry.start, count=entry.stop - entry.start)
    # A tensor's first byte must be a multiple of its items' size, which the format does not ask for.
    return (stored.clone() if entry.start % dtype.itemsize else stored).view(dtype).reshape(entry.torch_shape)
