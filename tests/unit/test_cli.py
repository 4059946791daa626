"""The command line on made-up results: tables for people, CSV and JSON for programs, and what it says without any."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from outlier_moe.cli import main
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from outlier_moe.statistics.routing import expert_routing
from tests.recordings import made_up_activations, write_recording
from tests.unit.statistics.test_comparison import FACTS, PRESETS
from tests.unit.statistics.test_routing import routers_of, rows_of
from tests.upcycling_tables import made_up_tables


@pytest.fixture
def results(tmp_path: Path) -> Path:
    models = []
    for seed, name in enumerate(["one", "smollm2"]):
        activations = made_up_activations(n_layers=3, shape=(3, 30, 40), seed=seed)
        recording = write_recording(tmp_path / name / "outliers", activations)
        systematic = systematic_features(recording, PRESETS)
        systematic.write_parquet(tmp_path / name / "systematic.parquet")
        facts = {"model": name, **FACTS}
        models.append(ComparedModel(facts, recording, systematic.filter("is_systematic")))
    (tmp_path / "comparison").mkdir()
    table = compare_models(models, PRESETS).models
    table.write_parquet(tmp_path / "comparison" / "models.parquet")
    return tmp_path


def test_show_as_csv_and_json_is_the_whole_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pl.read_parquet(results / "comparison" / "models.parquet")
    assert main(["show", "--results", str(results), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["n_systematic"] for row in rows] == [str(n) for n in table["n_systematic"]]
    assert list(rows[0]) == table.columns
    assert main(["show", "--results", str(results), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert pl.DataFrame(rows, schema=table.schema).equals(table)


def test_show_for_people_has_every_model(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "smollm2" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["dettmers2022"] in lines, "a preset's name stands above its models"
    table = pl.read_parquet(results / "comparison" / "models.parquet")
    first = table.filter(model="one", preset="dettmers2022", first_token="included").row(0, named=True)
    assert lines[lines.index(["dettmers2022"]) + 1][:4] == ["one", "0.10", "7.39", str(first["n_systematic"])]


def test_top_lists_the_features_with_the_largest_peaks(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "smollm2", "--results", str(results), "--format", "json", "-n", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)
    table = pl.read_parquet(results / "smollm2" / "systematic.parquet")
    expected = table.filter(preset="dettmers2022", first_token="included").sort(
        "is_systematic", "peak", descending=True
    )
    assert [row["feature"] for row in rows] == expected["feature"].head(3).to_list()


def test_a_definition_that_marks_every_feature_is_marked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = results / "comparison" / "models.parquet"
    table = pl.read_parquet(comparison)
    preset = table["preset"][0]
    is_odd = (pl.col("model") == "one") & (pl.col("preset") == preset)
    share = pl.when(is_odd).then(1.0).otherwise(0.1)
    table.with_columns(d_model_share=share).write_parquet(comparison)
    assert main(["show", "--results", str(results)]) == 0
    assert capsys.readouterr().out.count("degenerate") == 1
    features = results / "one" / "systematic.parquet"
    every = pl.DataFrame({"feature": range(40)}, schema={"feature": pl.UInt32})
    rows = pl.read_parquet(features).filter(preset=preset, first_token="included").head(1)
    whole = rows.drop("feature").join(every, how="cross").with_columns(is_systematic=True)
    for n, is_marked in ((40, True), (35, False)):
        whole.head(n).write_parquet(features)
        assert main(["top", "one", "--preset", preset, "--results", str(results)]) == 0
        assert ("degenerate" in capsys.readouterr().out) == is_marked
        assert main(["top", "one", "--preset", preset, "--results", str(results), "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["is_degenerate"] == is_marked


def test_top_lists_the_experts_of_outlier_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "comparison").mkdir()
    experts = rows_of(np.array([[9, 1, 0], [9, 1, 0]]), np.array([[9, 36, 45], [9, 36, 45]]))
    table = expert_routing(experts, routers_of(experts, 1), ladder=Ladder(), magnitude=6.0, model="mixtral")
    table.write_parquet(tmp_path / "comparison" / "expert_routing.parquet")
    assert main(["top", "mixtral", "--experts", "-n", "2", "--results", str(tmp_path)]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["3", "0", "routed", "90.0", "10.0", "9.00", "18", "36"] in printed
    assert main(["top", "mixtral", "--experts", "--results", str(tmp_path), "--format", "json"]) == 0
    assert [row["expert"] for row in json.loads(capsys.readouterr().out)] == [0, 2, 1]
    assert main(["top", "qwen3-30b-a3b", "--experts", "--results", str(tmp_path)]) == 1
    assert "a model whose experts were recorded: mixtral" in capsys.readouterr().err
    assert main(["top", "smollm2", "--experts", "--results", str(tmp_path)]) == 1
    assert "is dense" in capsys.readouterr().err


def test_a_recording_without_experts_is_of_a_dense_model(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "one", "--experts", "--results", str(results)]) == 1
    assert "is dense" in capsys.readouterr().err


def test_a_preset_that_finds_nothing_is_no_unknown_one(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "one" / "systematic.parquet"
    pl.read_parquet(path).filter(pl.col("preset") != "dettmers2022").write_parquet(path)
    assert main(["top", "one", "--results", str(results)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "No feature of one is found by dettmers2022" in captured.err
    assert main(["top", "one", "--results", str(results), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_show_names_the_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "report").mkdir()
    (results / "report/index.html").write_text("")
    assert main(["show", "--results", str(results)]) == 0
    assert str(results / "report/index.html") in capsys.readouterr().err


def test_models_says_which_are_done(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--results", str(results), "--format", "json"]) == 0
    done = {row["model"]: row["done"] for row in json.loads(capsys.readouterr().out)}
    assert done["smollm2"] == "filtered"
    assert done["mixtral"] == ""


def test_upcycling_shows_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "upcycle").mkdir()
    tables = made_up_tables(["simple"])
    table = tables["summary"]
    table.write_parquet(tmp_path / "upcycle" / "summary.parquet")
    assert main(["upcycling", "--results", str(tmp_path), "--part", "samples"]) == 1
    assert "snakemake upcycle" in capsys.readouterr().err
    tables["samples"].write_parquet(tmp_path / "upcycle" / "samples.parquet")
    assert main(["upcycling", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "simple, seed 0, zero: [Once] upon zero" in text
    # Before and after the boundary, the jump, whether it is proven, the drop.
    assert text.count("5.6000") == 2 * len(table)
    assert main(["upcycling", "--results", str(tmp_path), "--part", "samples", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == tables["samples"].rows(named=True)
    assert main(["upcycling", "--results", str(tmp_path), "--part", "arms"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:6] for line in printed if "zero" in line] == [
        ["simple", seed, "zero", "5.60", "+0.000000", "5.4000"] for seed in ("0", "1")
    ]
    assert main(["upcycling", "--results", str(tmp_path), "--format", "json"]) == 0
    assert pl.DataFrame(json.loads(capsys.readouterr().out), schema=table.schema).equals(table)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show"], "Run snakemake (or make demo) first."),
        (["upcycling"], "snakemake upcycle"),
        (["top", "mixtral"], "snakemake"),
        (["top", "mixtral", "--experts"], "expert_routing.parquet"),
    ],
)
def test_without_results_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([*arguments, "--results", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err


def test_an_unknown_model_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "smolm2", "--results", str(tmp_path)]) == 1
    assert "Did you mean 'smollm2'?" in capsys.readouterr().err


def test_activations_that_were_no_numbers_are_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "comparison" / "models.parquet"
    odd = pl.when(pl.col("model") == "one").then(pl.lit(1234, pl.UInt64)).otherwise("n_nonfinite")
    pl.read_parquet(path).with_columns(odd.alias("n_nonfinite")).write_parquet(path)
    for command in (["show"], ["compare", "--include-dense"]):
        assert main([*command, "--results", str(results)]) == 0
        said = capsys.readouterr().out
        assert said.count("1,234 activations were NaN or infinite") == 1 and "one: 1,234" in said
        assert main([*command, "--results", str(results), "--format", "csv"]) == 0
        assert "activations" not in capsys.readouterr().out


def test_an_unknown_preset_names_the_nearest(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "one", "--results", str(results), "--preset", "dettmers"]) == 1
    assert "did you mean 'dettmers2022'?" in capsys.readouterr().err
