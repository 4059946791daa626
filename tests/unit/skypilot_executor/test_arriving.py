"""Files on their way from a node, with a real rsync and a shell in place of ssh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from snakemake_executor_plugin_skypilot.arriving import Address, copy_from, forget, put_in_place

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


@pytest.fixture
def address(tmp_path: Path) -> Address:
    """A node whose home is a folder here."""
    home = tmp_path / "node"
    (home / "work/results/folder/below this").mkdir(parents=True)
    (home / "work/results/a.bin").write_bytes(os.urandom(100_000))
    (home / "work/results/folder/.gitignore").write_text("*")
    (home / "work/results/folder/below this/it's").write_text("deep")
    (home / "work/results/folder/link").symlink_to("below this")
    (home / "work/undeclared").touch()
    os.utime(home / "work/results/a.bin", (1e9, 1e9))
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/bash\nif [ -e {tmp_path}/gone ]; then exit 255; fi\nshift 3; cd {home}; eval "$@"\n')
    ssh.chmod(0o755)
    return Address([str(ssh)], "root@node")


def test_all_at_once(address: Address, tmp_path: Path) -> None:
    """Files, folders, links and odd names, as they are; what is not there is no error, what is not wanted stays."""
    into, root = tmp_path / "arrived", tmp_path / "root"
    into.mkdir()
    (root / "results/folder").mkdir(parents=True)
    (root / "results/folder/stale").touch()
    (root / "results/kept").write_text("kept")
    wanted = ["results/folder", "results/a.bin", "results/missing", "results/kept"]
    assert copy_from(address, "work", wanted, into, threading.Event()) is None
    put_in_place(into, wanted, root)
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    below = "results/folder/below this/it's"
    assert there == {"results/a.bin", "results/kept", "results/folder/.gitignore", below}
    assert (root / "results/a.bin").read_bytes() == (tmp_path / "node/work/results/a.bin").read_bytes()
    assert os.readlink(root / "results/folder/link") == "below this"
    assert (root / "results/a.bin").stat().st_mtime > 1.5e9, "A node's clock is not this machine's."


def test_lost_on_the_way(address: Address, tmp_path: Path) -> None:
    """What is wrong is told."""
    (tmp_path / "gone").touch()
    problem = copy_from(address, "work", ["results"], tmp_path, threading.Event())
    assert problem is not None and "rsync error" in problem


def test_cancelled(tmp_path: Path) -> None:
    """It is broken off."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/bash\nexec sleep 1000\n")
    ssh.chmod(0o755)
    cancelled = threading.Event()
    cancelled.set()
    assert copy_from(Address([str(ssh)], "root@node"), "work", ["x"], tmp_path, cancelled) is not None


def test_a_folder_and_what_lies_in_it(tmp_path: Path) -> None:
    """Both may be wanted, and what takes the other's kind of place replaces it."""
    arrived, root = tmp_path / "arrived", tmp_path / "root"
    for name in ("a/b/c", "d", "e/f"):
        (arrived / name).parent.mkdir(parents=True, exist_ok=True)
        (arrived / name).write_text(name)
    (root / "d").mkdir(parents=True)
    (root / "e").write_text("was a file")
    put_in_place(arrived, ["a/b/c", "a", "d", "e"], root)
    assert (root / "a/b/c").read_text() == "a/b/c"
    assert (root / "d").read_text() == "d" and (root / "e/f").read_text() == "e/f"


# As Snakemake leaves a protected folder: neither it nor what is in it may be changed.
PROTECTED = """
import errno, os, sys
from pathlib import Path
from snakemake_executor_plugin_skypilot.arriving import put_in_place, remove
if os.getuid() == 0:
    os.setuid(65534)  # What root may do says nothing.
home = Path(sys.argv[1])
deep = home / "arrived/out/deep"
deep.mkdir(parents=True)
(deep / "x").write_text("1")
for path in (deep / "x", deep, deep.parent):
    path.chmod(0o555)
if sys.argv[2] == "other disk":
    replace = Path.replace
    def refused(path, target):
        if path.parent.name == "arrived":
            raise OSError(errno.EXDEV, "another disk")
        return replace(path, target)
    Path.replace = refused
put_in_place(home / "arrived", ["out"], home / "here")
out = home / "here/out"
assert (out / "deep/x").read_text() == "1"
assert [oct(path.stat().st_mode & 0o777) for path in (out, out / "deep", out / "deep/x")] == ["0o555"] * 3
remove(out)
assert not out.exists()
"""


@pytest.mark.parametrize("disk", ["this disk", "other disk"])
def test_protected_folder(tmp_path: Path, disk: str) -> None:
    """It comes to its place, protected as it was, for a user who is not root."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    home.chmod(0o777)
    try:
        done = subprocess.run([sys.executable, "-c", PROTECTED, home, disk], capture_output=True, text=True)
    finally:
        shutil.rmtree(home)
    assert done.returncode == 0, done.stderr


def test_forgotten_once_it_succeeded(tmp_path: Path) -> None:
    """What a job would go on from is gone, results are not, whatever is said of them."""
    for name in ("state/1/weights", "state/2", "out/a.txt", "out/state"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    forget(["state/1", "state/missing", "out", "out/a.txt"], tmp_path, kept=["out/a.txt"])
    there = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert there == ["out/a.txt", "out/state", "state/2"]
    forget(["state"], tmp_path, kept=["out/a.txt"])
    assert not (tmp_path / "state").exists()
