"""The progress bars of transformers, which speak of weights and shards in the middle of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def model_bars_hidden() -> Iterator[None]:
    """Load and save models without a bar; a decorator too."""
    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
