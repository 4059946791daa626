"""What is said of a target that no rule makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlier_moe.planning.targets import rule_of_many, unknown_target

MODEL = r"{model,smollm2|mixtral|llama3\.2\-1b}"
OUTPUTS = {
    "all": [],
    "record_outliers": [f"results/{MODEL}/outliers"],
    "record_shard": [rf"results/{MODEL}/shards/{{shard,\d+}}-of-{{n_shards,\d+}}"],
    "merge_shards": ["results/{model,(?!)}/outliers"],
    "filter_systematic": [f"results/{MODEL}/systematic.parquet"],
    "write_report": ["results/report/index.html"],
    "measure_run": [
        r"results/{sweep,scale_sweep}/{scale,small|large|d\d+}/{optimizer,adamw|muon}/seed{seed,\d+}/metrics.parquet"
    ],
    "scale_sweep": [],
}


@pytest.mark.parametrize(
    ("target", "suggested"),
    [
        ("results/mixtrall/systematic.parquet", "results/mixtral/systematic.parquet"),
        ("results/llama3.1-1b/systematic.parquet", "results/llama3.2-1b/systematic.parquet"),
        ("results/mixtral/systemtic.parquet", "results/mixtral/systematic.parquet"),
        ("results/mixtrl/outlier", "results/mixtral/outliers"),
        ("result/report/index.html", "results/report/index.html"),
        (
            "results/scale_sweep/smaller/adamw/seed0/metrics.parquet",
            "results/scale_sweep/small/adamw/seed0/metrics.parquet",
        ),
        ("results/scale_sweep/d64/adam/seed3/metrics.parquet", "results/scale_sweep/d64/adamw/seed3/metrics.parquet"),
        ("recrod_outliers", "record_outliers"),
        ("scale_swep", "scale_sweep"),
        ("mixtrall", "mixtral"),
    ],
)
def test_the_nearest_target_is_suggested(target: str, suggested: str) -> None:
    error = unknown_target(target, OUTPUTS, ["smollm2", "mixtral", "llama3.2-1b"])
    assert error.got == target
    assert error.remedy == f"Did you mean '{suggested}'?"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mixtral", "results/mixtral/systematic.parquet"),
        ("results/mixtral/outliers/run.json", "snakemake results/mixtral/outliers"),
        ("results/report", "results/report/index.html"),
        ("results/", "results/MODEL/outliers"),
        ("qqqqqqq", "--list-target-rules"),
        ("a/b/c/d/e", "--list-target-rules"),
    ],
)
def test_other_targets_say_what_to_name(target: str, says: str) -> None:
    assert says in (unknown_target(target, OUTPUTS, ["smollm2", "mixtral"]).remedy or "")


def test_an_absolute_path_is_said_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = unknown_target(str(tmp_path / "results/mixtral/outliers"), OUTPUTS, ["mixtral"])
    assert (error.remedy or "").endswith("snakemake results/mixtral/outliers")


def test_a_rule_of_many_files_says_what_it_makes() -> None:
    error = rule_of_many("record_shard", OUTPUTS["record_shard"])
    assert "results/MODEL/shards/SHARD-of-N_SHARDS" in str(error.expected)
