"""A model's logs on this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path

LOGS = Path("logs")


def local_logs(model: str, logs: Path = LOGS) -> list[Path]:
    """A model's logs, the newest last: `logs/STAGE/MODEL.log`, and those of its shards.

    Args:
        model: The model.
        logs: The folder of all logs.
    """
    name = re.compile(rf"{re.escape(model)}(-\d+-of-\d+)?\.log")
    found = [path for path in logs.glob("*/*.log") if name.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def print_newest(found: list[Path]) -> None:
    """Name all logs on standard error, print the newest on standard output."""
    sys.stderr.write("Logs on this machine, the newest last:\n")
    for path in found:
        sys.stderr.write(f"  {path}\n")
    sys.stdout.write(found[-1].read_text(encoding="utf-8", errors="replace"))
