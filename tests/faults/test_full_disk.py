"""Every stage on a disk that fills up while it writes: told in the words of this project, and nothing is damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from outlier_moe.config.registry import CorpusEntry, DirectorySource, FilesSource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.machine.disk_trouble import disk_trouble
from outlier_moe.recording.kept_recordings import KeptRecordings
from outlier_moe.recording.record import record_outliers
from outlier_moe.sources.corpora import fetch_corpus
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import tokenize_corpus
from tests.tiny_models import save_tiny_model
from tests.unit.sources.entries import model_entry

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all. " * 60
OPTIONS = RecordOptions(floor=0.5, chunk=2, n_peaks=3, device="cpu")


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of its own, in memory, with so much room."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes + 4}k", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a disk")
    # A page, which is the least that a disk can have, is taken.
    (place / "other").write_bytes(bytes(4096))
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_tiny_model("mixtral", folder / "checkpoint", TEXT)
    (folder / "text.txt").write_text(TEXT)
    fetch(folder, folder / "model")
    fetch_text(folder, folder / "text.parquet")
    tokenize(folder, folder / "tokens.arrow")
    return folder


def fetch(study: Path, output: Path) -> None:
    fetch_model(model_entry(DirectorySource(study / "checkpoint"), id="tiny"), output)


def fetch_text(study: Path, output: Path) -> None:
    fetch_corpus(CorpusEntry("small", FilesSource((str(study / "text.txt"),)), max_characters=100_000), output)


def tokenize(study: Path, output: Path) -> None:
    tokenize_corpus(study / "text.parquet", study / "model", output, n_sequences=4, sequence_length=64, bos="never")


def record(study: Path, output: Path) -> None:
    kept = KeptRecordings(output.with_name("recordings"))
    record_outliers(study / "model", study / "tokens.arrow", output, replace(OPTIONS, mode="resident"), kept=kept)


def stream(study: Path, output: Path) -> None:
    record_outliers(study / "model", study / "tokens.arrow", output, replace(OPTIONS, mode="streamed"))


STAGES: dict[str, tuple[Callable[[Path, Path], None], tuple[int, ...]]] = {
    "fetch_model": (fetch, (0, 8)),
    "fetch_corpus": (fetch_text, (0,)),
    "tokenize_corpus": (tokenize, (0,)),
    "record, resident": (record, (0, 40, 100)),
    "record, streamed": (stream, (0, 40)),
}
"""Each stage, and how many kilobytes are too few for it."""


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_told_at_every_stage_and_room_mends_it(study: Path, tmp_path: Path, name: str) -> None:
    make, sizes = STAGES[name]
    for kilobytes in sizes:
        with small_disk(tmp_path / "disk", kilobytes) as disk:
            with pytest.raises(Exception) as caught:
                make(study, disk / "output")
            told = caught.value if isinstance(caught.value, StudyError) else disk_trouble(caught.value, disk)
            assert told is not None and told.problem == "The disk is full.", caught.value
            assert "GB are free" in str(told.got)
            assert not (disk / "output").exists(), "nothing that looks whole"
            subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
            make(study, disk / "output")
            assert (disk / "output").exists()


def test_a_read_only_folder_is_told(study: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1000) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for make, _ in STAGES.values():
            with pytest.raises(Exception) as caught:
                make(study, disk / "output")
            told = caught.value if isinstance(caught.value, StudyError) else disk_trouble(caught.value, disk)
            assert told is not None and "read-only" in told.problem, caught.value


def test_standard_output_that_cannot_be_written_is_told() -> None:
    command = [sys.executable, "-m", "outlier_moe", "models", "--format", "csv"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1
    assert "Standard output cannot be written to: No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
