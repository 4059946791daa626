"""Stages as processes: alone at an output, killed, interrupted, refused by a disk, in a copy without times."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from outlier_moe.errors import StudyError
from outlier_moe.machine.disk_trouble import disk_trouble
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.machine.stages import killed_stages
from outlier_moe.machine.start_up import INTERRUPTED
from outlier_moe.recording.kept_times import (
    NOTES,
    begin_changes,
    forget_known,
    note_records,
    note_times,
    restore_records,
    restore_times,
)
from outlier_moe.tables.contents import DigestMemo
from outlier_moe.tables.whole_outputs import partial_of, whole_directory, whole_file

ROOT = Path(__file__).parent.parent.parent
STAGE = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.tables.whole_outputs import whole_file
name, wait_s = sys.argv[1:]
job = SimpleNamespace(input=["in.txt"], output=["results/out.txt"], params={"revision": 1})
with reporting_to("logs/record_outliers/out.log", job):
    with whole_file(Path("results/out.txt")) as partial:
        partial.write_text(name)
        print("writes", flush=True)
        time.sleep(float(wait_s))
"""


def written(path: Path) -> None:
    """Have a file, as old as it was."""
    if not path.exists():
        path.touch()


def stage(folder: Path, name: str, wait_s: float) -> subprocess.Popen[str]:
    written(folder / "in.txt")
    command = [sys.executable, "-c", STAGE, name, str(wait_s)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def started(folder: Path, name: str, wait_s: float) -> subprocess.Popen[str]:
    process = stage(folder, name, wait_s)
    assert process.stdout is not None and process.stdout.readline() == "writes\n"
    return process


def job(folder: Path, **params: Any) -> Any:
    written(folder / "in.txt")
    return SimpleNamespace(input=[folder / "in.txt"], output=[folder / "results/out.txt"], params=params)


def ran(folder: Path, text: str, **params: Any) -> bool:
    """Run a stage that writes a text; whether it had to."""
    has_run = False
    try:
        with reporting_to(folder / "logs/make/out.log", job(folder, **params)):
            (folder / "results/out.txt").write_text(text)
            has_run = True
    except SystemExit as ended:
        assert ended.code == 0
    return has_run


def test_a_second_process_waits_and_takes_up_what_the_first_has_made(tmp_path: Path) -> None:
    first = started(tmp_path, "first", 2)
    second = stage(tmp_path, "second", 0)
    said = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == 0 and second.returncode == 0
    assert (tmp_path / "results/out.txt").read_text() == "first"
    assert said[0] == "", "the second wrote nothing"
    assert "results/out.txt" in said[1] and "waiting" in said[1]
    assert not list((tmp_path / "results").glob("*partial*"))


def test_a_kill_lets_go_of_the_lock_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = started(tmp_path, "first", 60)
    monkeypatch.chdir(tmp_path)
    assert killed_stages(Path("logs")) == [], "it runs"
    first.kill()
    first.communicate()
    (told,) = killed_stages(Path("logs"))
    assert "results/out.txt" in told and "SIGKILL" in told and "memory" in told and "mode: streamed" in told
    second = started(tmp_path, "second", 0)
    assert "SIGKILL" in second.communicate(timeout=60)[1]
    assert (tmp_path / "results/out.txt").read_text() == "second"
    assert not list((tmp_path / "results").glob(".*.partial")), "what the first had left is gone"
    assert killed_stages(Path("logs")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_says_so_in_a_line(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, "first", 60)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == INTERRUPTED
    assert len(said.strip().splitlines()) == 1 and "interrupted" in said
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".out.txt.lock"]


def test_an_interrupt_while_libraries_are_imported_is_a_line_too(tmp_path: Path) -> None:
    importing = "import time; from outlier_moe.machine.start_up import uncollected\nwith uncollected():\n"
    waiting = (
        "  print('imports', flush=True)\n  try: time.sleep(60)\n  except BaseException: raise ValueError from None"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", importing + waiting], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == "imports\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == INTERRUPTED and len(said.splitlines()) == 1


def test_what_a_killed_snakemake_does_not_know_of_is_taken_up_once(tmp_path: Path) -> None:
    assert ran(tmp_path, "a", revision=1)
    (tmp_path / "results/out.txt").unlink()
    assert not ran(tmp_path, "b", revision=1), "Snakemake has removed it and starts it again"
    assert (tmp_path / "results/out.txt").read_text() == "a"
    assert ran(tmp_path, "b", revision=1), "only once: somebody may want it anew"


@pytest.mark.parametrize("change", ["params", "input", "known"])
def test_what_was_made_of_something_else_is_not_taken_up(tmp_path: Path, change: str) -> None:
    assert ran(tmp_path, "a", revision=1)
    (tmp_path / "results/out.txt").unlink()
    if change == "input":
        os.utime(tmp_path / "in.txt", (1, 1))
    if change == "known":
        forget_known([tmp_path / "results"])
    assert ran(tmp_path, "b", revision=2 if change == "params" else 1)
    assert (tmp_path / "results/out.txt").read_text() == "b"


def test_two_processes_never_write_to_the_same_place(tmp_path: Path) -> None:
    other = partial_of(tmp_path / "model", pid=os.getppid())
    other.mkdir()
    with whole_directory(tmp_path / "model") as ours, whole_file(tmp_path / "model.txt") as file:
        assert ours != other and file != partial_of(tmp_path / "model.txt", pid=os.getppid())
        file.touch()
    assert other.exists(), "its process lives"


REFUSALS = [
    (OSError(errno.ENOSPC, "No space left on device", "/a/b.parquet"), "full", "b.parquet"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota", "place"),
    (PermissionError(errno.EACCES, "Permission denied", "/a/c"), "closed", "/a/c"),
    (OSError(errno.EROFS, "Read-only file system", "/a/c"), "read-only", "/a/c"),
    (OSError(errno.EFBIG, "File too large"), "larger", "place"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "full", "place"),
    (RuntimeError("[Errno 28] Error writing bytes. Detail: [errno 28] No space left on device"), "full", "place"),
]


@pytest.mark.parametrize(("error", "word", "file"), REFUSALS)
def test_what_a_disk_refuses_is_told(tmp_path: Path, error: Exception, word: str, file: str) -> None:
    told = disk_trouble(error, tmp_path / "place")
    assert told is not None and word in told.problem and file in str(told.file)
    assert "GB are free" in str(told.got) and told.remedy
    wrapped = ValueError("a library's own")
    wrapped.__cause__ = error
    assert disk_trouble(wrapped, tmp_path) is not None


def test_other_errors_are_none_of_the_disk(tmp_path: Path) -> None:
    assert disk_trouble(ValueError("no space between words"), tmp_path) is None
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "No such file"), tmp_path) is None
    assert disk_trouble(StudyError("A mistake."), tmp_path) is None


def test_a_full_disk_ends_a_stage_in_a_few_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reporting_to(tmp_path / "logs/out.log", job(tmp_path)):
        raise OSError(errno.ENOSPC, "No space left on device")
    said = capsys.readouterr().err
    assert "The disk is full." in said and "out.txt" in said and "Traceback" not in said
    assert "The disk is full." in (tmp_path / "logs/out.log").read_text()


def test_a_disk_without_locks_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert ran(tmp_path, "a")
    assert "no locks" in capsys.readouterr().err


def study(folder: Path) -> list[Path]:
    for name in ("results/a.parquet", "results/m/outliers/x.arrow", "resources/t.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return [Path("results"), Path("resources")]


def test_a_copy_without_times_gets_them_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = study(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        os.utime(path, ns=(0, 10**18 + number))
    note_times(folders)
    shutil.copytree(tmp_path, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    Path("results/a.parquet").write_text("Results/a.parquet")
    assert restore_times(folders) == len(files) - 1, "but not one that holds something else"
    times = {path.relative_to(tmp_path): path.stat().st_mtime_ns for path in files}
    for path, time_ns in times.items():
        assert (path.stat().st_mtime_ns == time_ns) == (path.name != "a.parquet"), path


def test_a_copy_without_records_gets_those_of_the_run_that_made_it(tmp_path: Path) -> None:
    results, metadata, copied = tmp_path / "results", tmp_path / "metadata", tmp_path / "copied/metadata"
    (metadata / "@long").mkdir(parents=True)
    (metadata / "@long/name").write_text("params")
    results.mkdir()
    note_records(results, metadata)
    assert not restore_records(results, copied), "a run that was killed"
    (results / NOTES).write_text("{}")
    copied.mkdir(parents=True)
    assert restore_records(results, copied)
    assert (copied / "@long/name").read_text() == "params"
    (copied / "@long/name").write_text("newer")
    assert not restore_records(results, copied)
    assert (copied / "@long/name").read_text() == "newer"


def test_no_times_are_put_back_after_a_run_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = study(tmp_path)
    note_times(folders)
    begin_changes(folders)
    os.utime("results/a.parquet", (1, 1))
    assert restore_times(folders) == 0
    note_times(folders)
    assert Path("results/a.parquet").stat().st_mtime == 1


def test_a_digest_is_read_again_when_a_file_changes(tmp_path: Path) -> None:
    file, memo = tmp_path / "weights", DigestMemo(tmp_path / "memo.json")
    file.write_text("a")
    first = memo.sha256_of(file)
    memo.save()
    file.write_text("b")
    os.utime(file, ns=(0, 5))
    again = DigestMemo(tmp_path / "memo.json")
    assert again.sha256_of(file) != first
    assert json.loads((tmp_path / "memo.json").read_text())[os.path.relpath(file)][2] == first
