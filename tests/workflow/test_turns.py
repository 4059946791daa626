"""A recording goes before the experiments, which would keep from it the cores that it waits for."""

from __future__ import annotations

from pathlib import Path

from tests.workflow.study_folder import make_study

# What each stage leaves is of no account here, and when it works is: the one before the recording takes its time.
SCRIPT = """
import time
from pathlib import Path

started = time.time()
time.sleep(2.0 if "tokens" in snakemake.output.keys() else 0.1)
for output in map(Path, snakemake.output):
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch() if output.suffix else output.mkdir(exist_ok=True)
with open("stages.txt", "a") as stages:
    stages.write(f"{snakemake.rule} {started} {time.time()}\\n")
"""


def test_no_training_starts_while_a_recording_is_left(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", {"tiny": "gpt2"})
    registry = study.path / "config/models.yaml"
    registry.write_text(registry.read_text().replace("small", "pydoc-topics"))
    for script in (study.path / "workflow/scripts").glob("*.py"):
        script.write_text(SCRIPT)
    study.snakemake("results/tiny/outliers", "results/upcycle/simple/seed0/dense_model")
    lines = [line.split() for line in (study.path / "stages.txt").read_text().splitlines()]
    times = {rule: (float(started), float(ended)) for rule, started, ended in lines}
    recorded = times["record_outliers"][1]
    assert times["train_dense"][0] > recorded
    # Light stages do not wait.
    assert times["tokenize_training_text"][0] < times["record_outliers"][0]
