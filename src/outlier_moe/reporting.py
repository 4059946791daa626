"""What a stage says while it works: details to its log file, warnings and mistakes to the terminal too."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outlier_moe.errors import StudyError

log = logging.getLogger("outlier_moe")


@contextmanager
def reporting_to(path: str | Path) -> Iterator[None]:
    """Log to a file while a stage runs; a mistake of the user's ends the process with its message alone.

    Args:
        path: The log file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [to_file, to_terminal]
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        # The bars of the libraries are for a terminal; in a file each step of theirs is one more line.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        yield
    except StudyError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    except Exception:
        log.exception("the stage failed")
        raise SystemExit(1) from None
    finally:
        for handler in (to_file, to_terminal):
            root.removeHandler(handler)
        to_file.close()
