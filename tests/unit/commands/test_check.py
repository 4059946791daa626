"""`check`, `models`, `logs` and `completion`: what is known of a model before it runs, and of the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from outlier_moe.cli import _parser, main
from outlier_moe.commands import nodes
from outlier_moe.commands.completion import SHELLS
from outlier_moe.config.model_labels import ModelLabels, write_labels
from outlier_moe.errors import StudyError
from outlier_moe.terminal.arguments import subcommands
from tests.hub_server import reachable_hub
from tests.tiny_models import save_tiny_model

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    save_tiny_model("mixtral", tmp_path / "tiny", "The quick brown fox jumps over the lazy dog. " * 20)
    return tmp_path / "tiny"


def findings(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, tuple[str, str]]:
    assert main(["check", *arguments, "--format", "json"]) == status
    return {row["part"]: (row["verdict"], row["said"]) for row in json.loads(capsys.readouterr().out)}


def test_a_folder_is_checked_by_its_path(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    found = findings(capsys, str(tiny))
    assert {verdict for verdict, _ in found.values()} <= {"ok", "note"}
    assert "mixtral, Mixture of Experts" in found["model"][1] and "3 layers" in found["model"][1]
    assert found["precision"] == ("ok", "float32")
    assert "tokenizer" in found and "mode" in found and "length" in found


def test_each_refusal_is_told_and_the_rest_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (tiny / "tokenizer.json").unlink()
    assert main(["check", str(tiny), "--format", "json"]) == 1
    captured = capsys.readouterr()
    rows = {row["part"]: row["verdict"] for row in json.loads(captured.out)}
    assert rows["model"] == "ok" and rows["tokenizer"] == "refused"
    assert "no tokenizer" in captured.err and "remedy: " in captured.err


def test_a_repository_is_checked_without_its_weights(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with reachable_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add_folder("someone/tiny", tiny)
        found = findings(capsys, "someone/tiny")
        whole = [request.path for request in hub.requests if request.method == "GET" and request.byte_range is None]
        assert main(["check", "someone/absent"]) == 1
    assert found["files"][0] == "ok" and "someone/tiny" in found["files"][1]
    assert "Mixture of Experts" in found["model"][1] and found["tokenizer"][0] == "ok"
    assert not any("safetensors" in path and "index" not in path for path in whole), "no more than headers"
    assert "someone/absent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "says"), [("mixtrall", "'mixtral'"), ("gemma-3-7b", "12 and 27 billion"), ("./nowhere", "a folder")]
)
def test_what_is_no_model_says_so(
    model: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["check", model]) == 1
    assert says in capsys.readouterr().err


def test_models_says_what_each_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2/source.json").write_text("{}")
    assert main(["models", "--fetched", str(tmp_path), "--format", "json"]) == 0
    lacks = {row["model"]: row["lacks"] for row in json.loads(capsys.readouterr().out)}
    assert lacks["smollm2"] == ""
    assert lacks["mixtral"].endswith("not fetched")
    assert lacks["gemma-3-7b"] == "cannot be had"
    assert any("token" in lack for lack in lacks.values())


def test_models_says_of_a_fetched_model_what_its_entry_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"source": {"kind": "directory", "path": "mine"}, "corpus": "text"}
    corpora = {"text": {"source": {"kind": "files", "paths": ["text.txt"]}, "max_characters": 1000}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"mine": entry}, "corpora": corpora}))
    (tmp_path / "mine").mkdir()
    write_labels(ModelLabels("mixtral", "moe", 46.7, 12.9, 8, 2, 0), tmp_path / "mine")
    where = ["--registry", str(tmp_path / "models.yaml"), "--fetched", str(tmp_path), "--format", "json"]
    assert main(["models", *where, "--registry-schema", str(ROOT / "workflow/schemas/models.schema.yaml")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["family"], row["total_params_b"]) == ("moe", "mixtral", 46.7)


def test_logs_of_this_machine_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_installed() -> None:
        raise StudyError("SkyPilot is not installed in this environment.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "import_skypilot", not_installed)
    assert main(["logs", "tiny"]) == 1
    assert "tiny" in capsys.readouterr().err
    for stage, name in (("tokenize_corpus", "tiny"), ("record_shard", "tiny-1-of-2"), ("record_outliers", "tiny-moe")):
        path = tmp_path / "logs" / stage / f"{name}.log"
        path.parent.mkdir(parents=True)
        path.write_text(f"said by {stage}\n")
    assert main(["logs", "tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("said by ") and "tiny-moe" not in captured.out + captured.err
    assert "logs/tokenize_corpus/tiny.log" in captured.err and "logs/record_shard/tiny-1-of-2.log" in captured.err


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in subcommands(_parser()))
    assert "lm_scale_sweep" in script and "markdown" in script


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    (tmp_path / "completion").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        script = f"source completion; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _outlier_moe"
        script += "; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, text=True, capture_output=True, check=True)
        return done.stdout.split()

    (tmp_path / "config").mkdir()
    (tmp_path / "config/models.yaml").write_text("models:\n  smollm2:\n    kind: dense\ncorpora:\n  small: {}\n")
    assert completed("outlier-moe", "comp") == ["compare", "completion", "completion"]
    assert completed("outlier-moe", "top", "sm") == ["smollm2"]
    assert completed("outlier-moe", "show", "--format", "j") == ["json"]
    assert completed("outlier-moe", "top", "--exp") == ["--experts"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shows"], "did you mean 'show'?"),
        (["show", "--formt", "csv"], "did you mean '--format'?"),
        (["show", "--format", "jsn"], "did you mean 'json'?"),
        (["sweep", "scale_swep"], "did you mean"),
        (["top", "smollm2", "-n", "0"], "from 1 up"),
    ],
)
def test_a_misspelt_command_line_names_the_nearest(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
