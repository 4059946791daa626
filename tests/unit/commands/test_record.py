"""`record`: a model's outlier features from a shell, without a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import outlier_moe as om
from outlier_moe.cli import main
from tests.tiny_models import save_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny_model("llama", tmp_path / "tiny", TEXT)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_recorded_from_a_shell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "record",
        "tiny",
        "--text",
        "text.txt",
        "--sequences",
        "2",
        "--sequence-length",
        "16",
        "--mode",
        "streamed",
    ]
    assert main([*asked, "--format", "json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert {row["model"] for row in rows} == {"tiny"} and {row["first_token"] for row in rows} == {
        "included",
        "excluded",
    }
    assert "recordings/tiny" in captured.err
    recording = om.load(folder / "recordings/tiny")
    assert (recording.run["mode"], recording.run["n_sequences"], recording.run["sequence_length"]) == (
        "streamed",
        2,
        16,
    )
    assert recording.run["tokens"]["corpus"]["corpus"] == "text.txt"
    assert main([*asked, "--out", "mine"]) == 0
    assert "dettmers2022" in capsys.readouterr().out and om.load("mine").model == "tiny"
    # What is there stays there.
    assert main(asked) == 1 and "recordings/tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["nowhere"], "nowhere"),
        (["tiny", "--text", "absent.txt"], "absent.txt"),
        (["tiny", "--text", "tiny"], "tiny"),
        (["tiny", "--sequences", "0"], "n_sequences"),
        (["tiny", "--sequences", "900", "--text", "text.txt"], "900 sequences"),
        (["tiny", "--floor", "3.3"], "floor"),
        (["tiny", "--chunk", "0"], "chunk"),
        (["."], "Name that folder"),
    ],
)
def test_what_cannot_be_recorded_says_so(
    folder: Path, asked: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record", *asked]) == 1
    told = capsys.readouterr().err
    assert says in told and not (folder / "recordings").exists()
