"""What the report says of studies that allow few statements, and that it takes nothing for markup."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from outlier_moe.report.explorer import explorer_study
from outlier_moe.report.findings import findings
from outlier_moe.report.first_look import first_look
from outlier_moe.report.inputs import ReportInputs, read_contents
from outlier_moe.report.page import parameter_unit, write_report
from outlier_moe.report.statistics_tables import routing_table, statistics_tables
from outlier_moe.report.tables import comparison_tables, provenance_table
from outlier_moe.statistics import study_tests
from outlier_moe.statistics.degenerate import with_degenerate
from outlier_moe.tables.comparison import ModelResample
from outlier_moe.terminal.figures import plain
from tests.reported_study import HOSTILE, MODELS, files_of

DENSE = [name for name, (kind, *_) in MODELS.items() if kind == "dense"]
MOE = [name for name in MODELS if name not in DENSE]


def chosen(study: ReportInputs, names: list[str]) -> ReportInputs:
    """The study with some of its models."""
    return replace(study, models=study.models.filter(pl.col("model").is_in(names)))


def with_run(study: ReportInputs, folder: Path, model: str, **changed: object) -> ReportInputs:
    """The study with another provenance of one model."""
    copy = folder / model
    shutil.copytree(study.files[model].outliers.parent, copy)
    run = json.loads((copy / "outliers/run.json").read_text())
    (copy / "outliers/run.json").write_text(json.dumps({**run, **changed}))
    return replace(study, files={**study.files, model: files_of(copy)})


def left_out(study: ReportInputs, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """What the report leaves out and why; each is a line of the log too."""
    with caplog.at_level(logging.WARNING):
        said = read_contents(study).left_out
    for item in said:
        assert f"left out of the report: {item.what}: {item.reason}" in caplog.messages
    return dict(said)


def page_of(study: ReportInputs, folder: Path) -> str:
    write_report(study, folder / "index.html", vega_bundle="")
    return (folder / "index.html").read_text()


def test_no_model_is_done(study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nothing = replace(study, models=study.models.head(0), features=study.features.head(0))
    assert "no model of the study is done yet" in left_out(nothing, caplog)["everything"]
    page = page_of(nothing, tmp_path)
    assert "There is nothing to report yet." in page
    assert "no model of the study is done yet" in page


def test_one_model_alone(study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = chosen(study, DENSE[:1])
    assert left_out(alone, caplog) == {}
    topics = {finding.topic for finding in findings(alone, read_contents(alone))}
    assert "How many" in topics
    assert not topics & {"Dense against MoE", "Is there a jump?"}
    page = page_of(alone, tmp_path)
    assert f"<title>Outlier features of {DENSE[0]}</title>" in page
    assert 'data-choose="moe"' not in page and "1 models" not in page


@pytest.mark.parametrize(("names", "title"), [(DENSE, "2 dense models"), (MOE, "2 Mixture-of-Experts models")])
def test_one_kind_alone(
    study: ReportInputs, names: list[str], title: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_kind = chosen(study, names)
    assert left_out(of_kind, caplog) == {}
    page = page_of(of_kind, tmp_path)
    assert f"<title>Outlier features of {title}</title>" in page
    assert "0 dense" not in page and "against Mixture" not in page
    assert "The median MoE model" not in page, "nothing stands against it"
    assert "Bars are" not in page, "there are no intervals"


def test_four_models_are_too_few_for_the_tests_and_the_page_says_so(study: ReportInputs, tmp_path: Path) -> None:
    tested = study_tests.tests_of_study(study.models, ModelResample.create_empty(), presets=["dettmers2022"], seed=0)
    row = study.models.filter(preset="dettmers2022", first_token="included").row(0, named=True)
    interval = {"preset": "dettmers2022", "first_token": "included", "figure": "n_systematic", "model": row["model"]}
    ends = {"low": row["n_systematic"] - 1.0, "high": row["n_systematic"] + 1.0, "confidence_level": 0.9}
    tables = {**tested._asdict(), "intervals": pl.DataFrame([{**interval, **ends}])}
    known = replace(study, statistics=tables)
    found = {finding.topic: finding for finding in findings(known, read_contents(known))}
    assert "too few models to tell in 6 of 6 figures" in found["Is there a jump?"].sentence
    assert "too few to tell" in found["Dense against MoE"].details[0]
    page = page_of(known, tmp_path)
    for topic in ("Is there a jump?", "Dense against MoE", "How much text"):
        assert found[topic].sentence in page
    assert "Bars are 90 % intervals over resampled sequences" in page


def test_a_missing_perplexity(study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = pl.when(pl.col("model") != DENSE[0]).then("perplexity")
    silent = replace(study, models=study.models.with_columns(known))
    assert left_out(silent, caplog) == {"pictures against perplexity": f"no loss was recorded for {DENSE[0]}"}
    assert f"no loss was recorded for {DENSE[0]}" in page_of(silent, tmp_path)


def test_no_perplexity_at_all(study: ReportInputs, tmp_path: Path) -> None:
    silent = replace(study, models=study.models.with_columns(perplexity=pl.lit(None, pl.Float64)))
    assert "Against perplexity" not in page_of(silent, tmp_path)


def test_another_text_is_never_mixed_in(study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = pl.when(pl.col("model") == MOE[0]).then(pl.lit("b" * 64)).otherwise("corpus_sha256")
    mixed = replace(study, models=study.models.with_columns(corpus_sha256=other))
    said = left_out(mixed, caplog)
    assert said.keys() == {MOE[0]}
    assert "of the text bbbbbbbbbbbb; most models" in said[MOE[0]]
    assert MOE[0] not in {model.name for model in read_contents(mixed).models}
    assert f"<b>{MOE[0]}</b>: recorded on" in page_of(mixed, tmp_path)


def test_another_floor_and_another_version(
    study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = DENSE[1]
    higher = with_run(study, tmp_path / "floor", name, floor=4.0)
    assert left_out(higher, caplog) == {
        "magnitudes below 4": f"{name} recorded nothing below that floor, so that sliders start there"
    }
    alike = with_run(study, tmp_path / "one", MOE[0], caveats=["no such token"])
    alike = with_run(alike, tmp_path / "other", MOE[1], caveats=["no such token"])
    assert left_out(alike, caplog) == {", ".join(MOE): "no such token"}, "the same of several models is said once"
    newer = with_run(study, tmp_path / "version", name, versions={"torch": "9.9"})
    said = left_out(newer, caplog)["exact equality across versions of torch"]
    assert f"9.9: {name}" in said


def test_a_table_that_cannot_be_read_leaves_its_model_out(
    study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = with_run(study, tmp_path, MOE[1], format=0)
    said = left_out(broken, caplog)
    assert "A recording has another format." in said[MOE[1]]
    assert len(read_contents(broken).models) == len(MODELS) - 1


def with_statistics(study: ReportInputs, **tables: pl.DataFrame) -> ReportInputs:
    """The study with tables of statistics, by the default preset and with first tokens."""
    given = {"preset": pl.lit("dettmers2022"), "first_token": pl.lit("included")}
    named = {name: table.with_columns(**given) for name, table in tables.items()}
    return replace(study, statistics={**named, "expert_routing": EXPERTS})


EXPERTS = pl.DataFrame(
    {
        "model": MOE[0],
        "layer": 1,
        "expert": range(30),
        "kind": "routed",
        "magnitude": 6.0,
        "outlier_share": [0.9, *[0.1 / 29] * 29],
        "rest_share": [1 / 30] * 30,
        "outlier_lift": [27.0, *[3 / 29] * 29],
        "n_outlier_tokens": [90, *[0] * 29],
        "n_layer_outlier_tokens": 100,
        "n_tokens": 120,
        "n_layer_tokens": 1100,
    }
)


def shown_rows(study: ReportInputs) -> dict[str, list[list[str]]]:
    """The cells of each table of statistics."""
    tables = statistics_tables(study, read_contents(study))
    return {table.id: [[cell.text for cell in row] for row in table.rows] for table in tables}


def test_statistics_show_every_row_of_the_models_compared(study: ReportInputs) -> None:
    of_all = pl.DataFrame({"model": [name for name in MODELS for _ in range(300)], "mean": 1.0})
    pairs = pl.DataFrame(
        [(a, b, 1.0) for a in MODELS for b in MODELS if a < b], ["model", "other", "estimate"], orient="row"
    )
    groups = pl.DataFrame(
        {"by": ["routing", "family"], "group": ["softmax", HOSTILE], "y": "n_systematic", "median": 2.0}
    )
    other = pl.when(pl.col("model") == DENSE[0]).then(pl.lit("b" * 64)).otherwise("corpus_sha256")
    mixed = replace(study, models=study.models.with_columns(corpus_sha256=other))
    found = shown_rows(with_statistics(mixed, stability=of_all, differences=pairs, groups=groups))
    assert len(found["stability"]) == 300 * (len(MODELS) - 1)
    named = {name for row in found["differences"] for name in row[:2]}
    assert named == set(MODELS) - {DENSE[0]}, "what the report leaves out has no differences in it"
    assert [row[:2] for row in found["groups"]] == [["routing", "softmax"], ["family", HOSTILE]]


def test_the_experts_that_stand_out_are_shown(study: ReportInputs, tmp_path: Path) -> None:
    told = with_statistics(study)
    table = routing_table(told, next(model for model in read_contents(told).models if model.name == MOE[0]))
    assert table is not None and len(table.rows) == 10
    assert [cell.text for cell in table.rows[0][:4]] == ["1", "0", "routed", "0.9"]
    page = page_of(told, tmp_path)
    assert "The 10 of 30 experts whose shares" in page
    assert f'id="table-routing-{MOE[0]}"' in page
    assert f'id="table-routing-{MOE[1]}"' not in page, "nothing is known of its experts"
    alike = EXPERTS.with_columns(n_layer_outlier_tokens=1100, rest_share=None, outlier_lift=pl.lit(None, pl.Float64))
    page = page_of(replace(told, statistics={"expert_routing": alike}), tmp_path)
    assert "In each layer all tokens or none are outlier tokens (|x| ≥ 6 at mlp_in)" in page


def test_the_first_table_says_which_feature_where_and_what_it_costs(study: ReportInputs) -> None:
    contents = read_contents(study)
    table = first_look(study, contents)
    assert [row[0].text for row in table.rows] == list(MODELS)
    heads = [head for head, _ in table.heads]
    for row, model in zip(table.rows, contents.models, strict=True):
        cells = {head: cell.text for head, cell in zip(heads, row, strict=True)}
        features = model.features.filter(preset="dettmers2022", first_token="included").sort("peak")
        assert cells["feature"] == str(features["feature"][-1])
        tap, layer = re.fullmatch(r"(\w+), layer (\d)", cells["read at"]).groups()  # type: ignore[union-attr]
        rows = model.recording.layer_outliers().collect().filter(feature=features["feature"][-1], layer=int(layer))
        assert rows.filter(pl.col("tap").cast(pl.String) == tap)["peak"].max() == features["peak"][-1]
        sites = model.recording.sites().filter(pl.col("tap").cast(pl.String) == tap, layer=int(layer))
        most_are_lost = sites["median_magnitude"].median() * 127 / sites["top_magnitude"].max() < 0.5  # type: ignore[operator]
        assert (cells["one int8 scale there"] == "most values become 0") == most_are_lost
    nothing = replace(study, features=study.features.head(0))
    assert {row[1].text for row in first_look(nothing, read_contents(nothing)).rows} == {"none"}


def test_the_sliders_command_keeps_what_the_study_was_started_with(study: ReportInputs) -> None:
    started = replace(study, overrides={"models": ["a b", "c"], "magnitude": 7.0}, configfiles=["my study.yaml"])
    command = explorer_study(started, read_contents(started))["command"]
    assert shlex.split(command["start"]) == ["snakemake", "--configfile", "my study.yaml"]
    assert [shlex.split(word) for word in command["keys"].values()] == [['models=["a b", "c"]'], ["magnitude=7.0"]]


def test_texts_have_their_names(study: ReportInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = {"corpus_sha256": "a" * 64, "corpus": {"corpus": "prose"}}
    named = with_run(study, tmp_path, DENSE[0], tokens=tokens)
    table = provenance_table(read_contents(named).models)
    texts = [row[[head for head, _ in table.heads].index("text")].text for row in table.rows]
    assert texts == [f"prose ({'a' * 12})", *["a" * 12] * 3]
    other = pl.when(pl.col("model") == MOE[0]).then(pl.lit("b" * 64)).otherwise("corpus_sha256")
    names = pl.when(pl.col("model") == MOE[0]).then(pl.lit("verse")).otherwise(pl.lit("prose"))
    mixed = replace(study, models=study.models.with_columns(corpus_sha256=other, corpus=names))
    reason = left_out(mixed, caplog)[MOE[0]]
    assert "of the text verse (bbbbbbbbbbbb)" in reason and "of prose (aaaaaaaaaaaa)" in reason


def test_a_degenerate_definition_is_marked_in_its_table(study: ReportInputs) -> None:
    is_odd = (pl.col("model") == DENSE[0]) & (pl.col("preset") == "dettmers2022")
    whole = with_degenerate(
        study.models.with_columns(d_model_share=pl.when(is_odd).then(1.0).otherwise("d_model_share"))
    )
    degenerate = replace(study, models=whole)
    contents = read_contents(degenerate)
    tables = {table.id: table for table in comparison_tables(degenerate, contents)}
    marked = [row[0].text for row in tables["dettmers2022-included"].rows if any("*" in cell.text for cell in row)]
    assert marked == [DENSE[0]]
    assert "degenerate" in tables["dettmers2022-included"].text and not tables["survey2025-included"].text
    [said] = [finding for finding in findings(degenerate, contents) if "no test" in finding.sentence]
    assert DENSE[0] in said.sentence and said.is_caveat


def test_strings_of_models_stay_strings(study: ReportInputs, tmp_path: Path) -> None:
    skipped = replace(study, skipped={"gone": HOSTILE})
    page = page_of(skipped, tmp_path)
    assert "&lt;img src=x" in page
    assert HOSTILE not in page
    assert "<img" not in page


@pytest.mark.parametrize(
    ("largest_b", "said"),
    [(46.7, "46.7 billion parameters"), (0.016, "16 million parameters"), (0.00002941, "29,410 parameters")],
)
def test_parameters_are_counted_in_a_fitting_unit(largest_b: float, said: str) -> None:
    unit, n_of_unit = parameter_unit(largest_b)
    assert f"{plain(largest_b * n_of_unit)} {unit}parameters" == said
