"""Faster starts and ends of a stage."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""What a process that Ctrl-C has ended says to the shell."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage in the context, and leave the objects made there out of later collections.

    For the start of a program. What torch and transformers make as they are imported lasts until its end, and Python
    would look through it time and again, and once more at the end: a third of the seconds that a stage needs to start
    and to end.
    """
    gc.disable()
    try:
        with _interrupted_in_a_line():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _interrupted_in_a_line() -> Iterator[None]:
    """End the process at once at Ctrl-C: half-imported libraries turn it into other errors."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted before it began\n")
        os._exit(INTERRUPTED)

    with ended_by(end):
        yield


@contextmanager
def ended_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM with one function in the context; does nothing in a thread."""
    try:
        before = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # In a thread no signal is heard.
        yield
        return
    try:
        yield
    finally:
        for each, former in before.items():
            signal.signal(each, former)
