"""GGUF files read once, however often transformers asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_Reader = gguf.GGUFReader


class _PlainReader(_Reader):
    """A reader whose fields are plain arrays: numpy takes several times as long to cut a mapped one."""

    @property
    def data(self) -> Any:
        """The bytes of the file."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._bytes = mapped.view(np.ndarray)


@cache
def _read(path: str) -> _PlainReader:
    return _PlainReader(path)


def _reader_of(path: str | Path) -> _PlainReader:
    return _read(os.fspath(path))


@contextmanager
def read_once() -> Iterator[None]:
    """Make `gguf` cache its readers and maps of tensor names while the block runs.

    transformers opens a file anew for its configuration, its tokenizer and its weights, each time with all of the
    vocabulary, and makes the same map of names for every module: half the time that a small model takes to convert.
    No file may change meanwhile.
    """
    names = gguf.get_tensor_name_map
    # transformers takes both from the module at each call.
    gguf.GGUFReader, gguf.get_tensor_name_map = _reader_of, cache(names)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = _Reader, names  # type: ignore[misc]
        _read.cache_clear()
