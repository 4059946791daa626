"""Something that is done now and then while something else runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(every_s: float, act: Callable[[], None]) -> Iterator[None]:
    """Do something now and then, in a thread, while a block runs; that it fails once is no matter.

    Args:
        every_s: Seconds between the end of one time and the beginning of the next, and before the first.
        act: What is done.
    """
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(every_s):
            try:
                act()
            except Exception:  # The node is lost, say: whoever follows the job finds it out.
                continue

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
