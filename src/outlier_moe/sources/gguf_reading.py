"""GGUF files read once, however often transformers asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import gguf


@contextmanager
def read_once() -> Iterator[None]:
    """Make `gguf` cache its readers and maps of tensor names while the block runs.

    transformers opens a file anew for its configuration, its tokenizer and its weights, each time with all of the
    vocabulary, and makes the same map of names for every module: half the time that a small model takes to convert.
    No file may change meanwhile.
    """
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    # transformers takes both from the module at each call.
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(names)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names  # type: ignore[misc]
