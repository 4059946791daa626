"""One job on a node that the real SkyPilot rents: what comes back, and what does not get out."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cloud.lab import TOKENS, Lab, Start

pytestmark = pytest.mark.pods


@pytest.mark.cloud_smoke
def test_files_of_a_job(lab: Lab, folder: Path, start: Start) -> None:
    """Outputs come back bit-identical, nothing else does, and the secrets are where they belong alone."""
    n_before = len(lab.events("created"))
    driver = start("results/x.bin")
    shown: set[str] = set()
    while driver.is_running:
        shown |= _commands_with_tokens()
        time.sleep(0.1)
    assert driver.wait() == 0, driver.all_said
    assert shown == set(), "command lines, which everybody on a machine can see"

    given = (folder / "data/in.bin").read_bytes()
    assert (folder / "results/x.bin").read_bytes() == given
    assert (folder / "results/x-files/below this/it's").read_bytes() == given
    assert (folder / "results/x-files/.gitignore").read_text() == "*\n"
    assert os.readlink(folder / "results/x-files/link") == "below this"
    assert {path.name for path in (folder / "results").iterdir()} == {"x.bin", "x-files"}
    assert (folder / "logs/x.log").read_text().startswith("pod")
    assert "max_rss" in (folder / "logs/x.tsv").read_text()

    output = next((folder / ".snakemake/skypilot/logs").rglob("*.log")).read_text()
    assert "tokens *** ***" in output and "\x1b" not in output
    # The laboratory's other tests have left their own.
    holders = {str(path.relative_to(lab.folder)) for path in _files(lab.folder) if _shows_token(path)}
    assert {path for path in holders if not path.endswith("/.env")} == set()
    assert f"{folder.name}/.env" in holders

    assert lab.pods == []
    assert not lab.events("not understood")
    assert "Rented 1 node" in driver.said and "x: $0.0" in driver.said
    # Nothing is left to do: a second run rents nothing.
    assert start("results/x.bin").wait() == 0
    assert len(lab.events("created")) == n_before + 1


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _commands_with_tokens() -> set[str]:
    """Command lines of this machine's processes, those in pods among them, that a token is in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if _shows_token(path):
                found.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace")[:300])
    return found


def _shows_token(path: Path) -> bool:
    held = path.read_bytes()
    return any(token.encode() in held for token in TOKENS.values())
