"""How far a streamed run is, and how often it keeps where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

# What saving where the forwards stand may take of the time.
LARGEST_SAVING_SHARE = 1 / 20


class Progress:
    """Tokens that are done, each layer counting for its share of them."""

    def __init__(self, n_tokens: int, n_layers: int, advance: Callable[[int], None]) -> None:
        self._n_tokens = n_tokens
        self._n_layers = n_layers
        self._advance = advance
        self._finished = 0

    def finish_layer(self) -> None:
        """Count one more layer."""
        before = self._n_tokens * self._finished // self._n_layers
        self._finished += 1
        self._advance(self._n_tokens * self._finished // self._n_layers - before)


class Pace:
    """When to save next."""

    def __init__(self, every: int | Literal["auto"]) -> None:
        self._every = every
        self._layers = 0
        self._last = time.monotonic()
        self._took_s = 0.0

    def is_due(self) -> bool:
        """Whether to save after the layer that has just finished."""
        self._layers += 1
        if isinstance(self._every, int):
            return self._layers % self._every == 0
        return self._took_s <= LARGEST_SAVING_SHARE * (time.monotonic() - self._last)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Note how long saving takes."""
        started = time.monotonic()
        yield
        self._last = time.monotonic()
        self._took_s = self._last - started
