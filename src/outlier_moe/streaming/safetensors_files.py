"""Reading single tensors of a safetensors file, each byte once.

The safetensors package keeps the interpreter's lock while it reads (110 ms for 64 MB), so that a layer could not be
read while another computes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from outlier_moe.errors import StudyError
from outlier_moe.sources.safetensors_header import TensorEntry, readable, whole_again

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


def read_tensors(path: Path, entries: Mapping[str, TensorEntry], names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a file, each of whose bytes is read, and then mapped where it lies in the system's cache.

    So they take no memory of the process, and lie at the same place in a page for both drivers: MKL's products of the
    same matrices differ in their last bits with the alignment of these. Reading first
    keeps the wait for the disk in this call, and makes a file that is cut short an error in place of a crash.

    Args:
        path: The file.
        entries: Its header.
        names: The tensors wanted.

    Raises:
        StudyError: If the file cannot be read, or ends before a tensor does.
    """
    names = list(names)
    with readable(path) as file:
        for start, stop in _ranges(entries, names):
            _read(file.fileno(), start, stop, path=path)
        # Private to the process and writable, as tensors are; what nobody writes to takes no memory of its own.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _mapped(content, entries[name]) for name in names}


def forget_cached(path: Path, entries: Mapping[str, TensorEntry], names: Iterable[str]) -> None:
    """Have the system drop some tensors of a file from its cache, which are not read again.

    Left to itself it drops what has lain there longest without being asked for: what was read ahead. Tensors that are
    still mapped stay.

    Args:
        path: The file.
        entries: Its header.
        names: The tensors.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        for start, stop in _ranges(entries, names):
            os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def _ranges(entries: Mapping[str, TensorEntry], names: Iterable[str]) -> Iterator[tuple[int, int]]:
    """The bytes of some tensors in the file's order, neighbours joined."""
    start = stop = 0
    for entry in sorted((entries[name] for name in names), key=lambda entry: entry.start):
        if entry.start != stop:
            if start < stop:
                yield start, stop
            start = entry.start
        stop = entry.stop
    if start < stop:
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
                remedy=whole_again(path),
            )
        start += n_read


def _mapped(content: mmap.mmap, entry: TensorEntry) -> Tensor:
    dtype = TORCH_DTYPES[entry.dtype]
    if entry.start == entry.stop:
        return torch.empty(entry.torch_shape, dtype=dtype)
    stored = torch.frombuffer(content, dtype=torch.uint8, offset=entry.start, count=entry.stop - entry.start)
    # A tensor's first byte must be a multiple of its items' size, which the format does not ask for.
    return (stored.clone() if entry.start % dtype.itemsize else stored).view(dtype).reshape(entry.torch_shape)
