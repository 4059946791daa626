"""Places that cannot be written to, runs that were killed or are running yet, and what they have left."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from filelock import FileLock

from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.recording.finished_chunks import ChunkFolder
from outlier_moe.recording.kept_recordings import MADE_FROM, KeptRecordings
from outlier_moe.recording.shard_merging import merge_shards
from outlier_moe.sources.tokenization import TokenTable, read_tokens, tokens_sha256, write_tokens
from tests.faults.wrong_inputs import ROOT, Answer, WrongInput, called, program

TEXT = "results/text.txt"


def staged(make: Callable[[Path], object], output: str = TEXT, *, before: Callable[[], object] | None = None) -> Answer:
    """The answer of a stage that makes an output of this folder."""
    if before is not None:
        before()
    job: Any = SimpleNamespace(input=[], output=[output], params={})
    told, handlers = io.StringIO(), logging.getLogger().handlers[:]
    try:
        with contextlib.redirect_stderr(told), reporting_to("logs/record_outliers/model.log", job):
            make(Path(output))
    except SystemExit as ended:
        return Answer(failed=ended.code != 0, text=told.getvalue())
    finally:
        logging.getLogger().handlers[:] = handlers
    return Answer(failed=False, text=told.getvalue())


def warned(make: Callable[[], object]) -> Answer:
    """What a function that goes on warns of."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logging.getLogger("outlier_moe").addHandler(handler)
    try:
        make()
    finally:
        logging.getLogger("outlier_moe").removeHandler(handler)
    return Answer(failed=False, text=told.getvalue())


def write_text(output: Path) -> None:
    output.write_text("text")


def tokens(output: Path, n_sequences: int = 3) -> None:
    rows = np.random.default_rng(0).integers(0, 2**16, (n_sequences, 64)).astype(np.uint32)
    shape = {"n_sequences": n_sequences, "sequence_length": 64}
    write_tokens(TokenTable(rows, {**shape, "tokens_sha256": tokens_sha256(rows)}), output)


@contextlib.contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def write_limited(output: Path) -> None:
    with files_no_larger_than(4096):
        tokens(output, 2000)


def cut_tokens(folder: Path) -> Answer:
    tokens(path := folder / "tokens.arrow")
    path.write_bytes(path.read_bytes()[:-20])
    return called(read_tokens, path)


def held_lock(folder: Path) -> Answer:
    Path("results").mkdir()
    is_held = threading.Event()

    def hold() -> None:
        with FileLock("results/.text.txt.lock"):
            is_held.set()
            time.sleep(0.5)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    answer = staged(write_text)
    holder.join()
    return answer


def killed_before(folder: Path) -> Answer:
    place = Path("logs/record_outliers")
    place.mkdir(parents=True)
    note = {"stage": "record_outliers", "output": "results/model/outliers"}
    (place / ".model.log.running.json").write_text(json.dumps(note))
    return staged(write_text)


def damaged_recording(folder: Path) -> Answer:
    recording, kept = folder / "outliers", KeptRecordings(folder / "recordings")
    recording.mkdir()
    made = {"tokens": "a"}
    (recording / "run.json").write_text(json.dumps({MADE_FROM: made}))
    (recording / "sites.parquet").write_text("figures")
    kept.keep(recording)
    (recording / "sites.parquet").write_text("other figures")
    return warned(lambda: kept.take_up(made, RecordOptions(), folder / "again"))


def another_runs_chunks(folder: Path) -> Answer:
    ChunkFolder(folder / "resume", {"tokens": "a"})
    return warned(lambda: ChunkFolder(folder / "resume", {"tokens": "b"}))


def no_shard(folder: Path) -> Answer:
    shard = folder / "shards/1-of-2"
    shard.mkdir(parents=True)
    (shard / "run.json").write_text(json.dumps({"format": 1}))
    return called(merge_shards, [shard], folder / "outliers", kept=KeptRecordings(folder / "recordings"))


def full_output(folder: Path) -> Answer:
    command = f"{sys.executable} -m outlier_moe models --format csv > /dev/full"
    return program("bash", "-c", command, cwd=ROOT)


CASES = [
    WrongInput(
        "results: a file stands where the folder should be",
        lambda folder: staged(write_text, before=lambda: Path("results").write_text("")),
        ("results", "folder", "move"),
    ),
    WrongInput(
        "results: a link that leads nowhere",
        lambda folder: staged(write_text, before=lambda: Path("results").symlink_to("gone")),
        ("results", "folder", "move"),
    ),
    WrongInput(
        "results: a file system that takes no files",
        lambda folder: staged(write_text, "/sys/outlier_moe/text.txt"),
        ("/sys/outlier_moe", "closed", "free"),
    ),
    WrongInput(
        "results: a name that is too long",
        lambda folder: staged(write_text, f"results/{'m' * 300}/text.txt"),
        ("name", "long", "shorter"),
    ),
    WrongInput(
        "results: a folder stands where the file should be",
        lambda folder: staged(write_text, before=lambda: os.makedirs(TEXT)),
        ("text.txt", "folder", "move"),
    ),
    WrongInput(
        "disk: a file may not become so large",
        lambda folder: staged(write_limited, "results/tokens.arrow"),
        ("tokens.arrow", "larger", "ulimit", "free"),
    ),
    WrongInput("disk: standard output is full", full_output, ("standard output", "space", "room")),
    WrongInput("disk: a cut file of tokens", cut_tokens, ("tokens.arrow", "damaged", "again")),
    WrongInput("runs: another process writes the same", held_lock, ("text.txt", "waiting"), is_warning=True),
    WrongInput("runs: the one before was killed", killed_before, ("SIGKILL", "memory", "streamed"), is_warning=True),
    WrongInput("runs: chunks of another run", another_runs_chunks, ("another run", "anew"), is_warning=True),
    WrongInput("runs: a kept recording is damaged", damaged_recording, ("damaged", "sites"), is_warning=True),
    WrongInput("runs: a folder that is no shard is merged", no_shard, ("run.json", "shard")),
]
