"""Programs in processes that need not import what they need: a server has done so, and forks one for each run."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# What every plan imports. None of it has threads, which a fork would lose.
PLANNING = (
    "snakemake.cli",
    "snakemake.report",
    "snakemake.script",
    "snakemake.sourcecache",
    "jinja2",
    "nbformat",
    "pandas",
    "requests",
    "outlier_moe.config.cluster",
    "outlier_moe.planning.lengths",
    "outlier_moe.planning.rented",
    "outlier_moe.planning.targets",
    "outlier_moe.recording.kept_times",
    "outlier_moe.study.study",
)


@functools.cache
def _server(modules: tuple[str, ...], home: str | None) -> subprocess.Popen[str]:
    """A server, which ends when its input is closed."""
    command = [sys.executable, str(Path(__file__).with_name("warm_server.py")), *modules]
    environment = os.environ | ({} if home is None else {"HOME": home})
    server = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.communicate)
    return server


def run(
    module: str,
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str] = os.environ,
    preloaded: tuple[str, ...] = PLANNING,
    apart: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` in a folder.

    Args:
        module: The program.
        *arguments: Its arguments.
        folder: The folder to run it in.
        environment: Its environment. One server serves one home, as some libraries read it while they are imported.
        preloaded: What the server has imported.
        apart: Whether errors are told apart; else the output is that of both streams.
    """
    server = _server(preloaded, environment.get("HOME"))
    assert server.stdin is not None and server.stdout is not None
    with tempfile.NamedTemporaryFile() as printed, tempfile.NamedTemporaryFile() as told:
        streams = [printed.name, told.name if apart else printed.name]
        request = {"module": module, "arguments": arguments, "folder": str(folder), "streams": streams}
        print(json.dumps(request | {"environment": dict(environment)}), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        texts = [Path(stream.name).read_text() for stream in (printed, told)]
        return subprocess.CompletedProcess([module, *arguments], status, *texts)
