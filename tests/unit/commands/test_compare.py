"""`outlier-moe compare`: what is printed can be read back, and nothing else stands on standard output."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from outlier_moe.commands.compare import COLUMNS, add_parser
from outlier_moe.errors import StudyError
from outlier_moe.tables import schemas
from outlier_moe.terminal.plots import letters, terminal_scatter
from outlier_moe.terminal.table_formats import latex_table, markdown_table
from tests.unit.plots.comparisons import made_up_comparison


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "comparison").mkdir()
    table = made_up_comparison(7, presets=("dettmers2022", "residual"))
    table.write_parquet(tmp_path / "comparison" / "models.parquet")
    return tmp_path


def with_intervals(results: Path) -> None:
    models = pl.read_parquet(results / "comparison" / "models.parquet")
    models.select(
        "model",
        "preset",
        "first_token",
        figure=pl.lit("n_systematic"),
        low=pl.col("n_systematic").cast(pl.Float64) - 2,
        high=pl.col("n_systematic").cast(pl.Float64) + 3,
    ).write_parquet(results / "comparison" / "intervals.parquet")


def compare(results: Path, *arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    found = parser.parse_args(["compare", "--results", str(results), *arguments])
    found.run(found)


def expected(results: Path) -> pl.DataFrame:
    models = pl.read_parquet(results / "comparison" / "models.parquet")
    return models.filter(preset="dettmers2022", first_token="included")


def read_back(text: str, like: pl.DataFrame, *, output_format: str) -> pl.DataFrame:
    schema = {name: dtype for name, dtype in like.schema.items()}
    plain = {name: pl.String if isinstance(dtype, pl.Enum) else dtype for name, dtype in schema.items()}
    if output_format == "csv":
        found = pl.read_csv(io.StringIO(text), schema=plain)
    else:
        found = pl.read_json(io.StringIO(text), schema=plain)
    return found.cast(schema)  # type: ignore[arg-type]


@pytest.mark.parametrize("output_format", ["csv", "json"])
def test_exports_are_read_back_equal(results: Path, capsys: pytest.CaptureFixture[str], output_format: str) -> None:
    compare(results, "--include-dense", "--format", output_format)
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, "that the table does not say its thresholds"
    table = expected(results)
    assert_frame_equal(read_back(captured.out, table, output_format=output_format), table)


def test_intervals_stand_beside_their_figures(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_intervals(results)
    compare(results, "--include-dense", "--format", "csv")
    found = pl.read_csv(io.StringIO(capsys.readouterr().out))
    assert (found["n_systematic_low"] == found["n_systematic"] - 2).all()
    compare(results, "--include-dense")
    row = expected(results).row(0, named=True)
    n = row["n_systematic"]
    assert f"({n - 2}–{n + 3})" in capsys.readouterr().out


def test_dense_models_are_left_out_and_said_to_be(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(results, "--format", "csv")
    captured = capsys.readouterr()
    dense = expected(results).filter(kind="dense")["model"].to_list()
    assert set(pl.read_csv(io.StringIO(captured.out))["kind"]) == {"moe"}
    assert all(model in captured.err for model in dense)


def test_named_models_are_shown_whatever_their_kind(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = expected(results)["model"].to_list()[:2]
    compare(results, "--models", *chosen, "--format", "csv")
    assert pl.read_csv(io.StringIO(capsys.readouterr().out))["model"].to_list() == chosen


def test_all_presets(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(results, "--preset", "all", "--include-dense", "--without-first-token", "--format", "csv")
    found = pl.read_csv(io.StringIO(capsys.readouterr().out))
    assert set(found["preset"]) == {"dettmers2022", "residual"}
    assert set(found["first_token"]) == {"excluded"}
    compare(results, "--preset", "all", "--include-dense")
    assert "residual" in capsys.readouterr().out


@pytest.mark.parametrize("output_format", ["markdown", "latex"])
def test_documents_hold_every_model(results: Path, capsys: pytest.CaptureFixture[str], output_format: str) -> None:
    compare(results, "--include-dense", "--format", output_format)
    out = capsys.readouterr().out
    assert all(model in out for model in expected(results)["model"])


def test_plots_show_a_letter_for_each_model(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(results, "--include-dense", "--terminal")
    out = capsys.readouterr().out
    assert out.count("total parameters (billions)") == 3
    table = out.split("systematic features, dettmers2022")[0]
    marks = letters(expected(results))
    for model, letter in marks.items():
        assert any(line.split()[:2] == [letter, model] for line in table.splitlines()), model


@pytest.mark.parametrize("output_format", ["csv", "json", "markdown", "latex"])
def test_plots_beside_a_table_for_programs_go_to_the_other_stream(
    results: Path, capsys: pytest.CaptureFixture[str], output_format: str
) -> None:
    compare(results, "--include-dense", "--format", output_format)
    alone = capsys.readouterr().out
    compare(results, "--include-dense", "--terminal", "--format", output_format)
    captured = capsys.readouterr()
    assert captured.out == alone
    assert captured.err.count("total parameters (billions)") == 3
    for model, letter in letters(expected(results)).items():
        assert f"{letter} {model}" in captured.err


def test_what_cannot_be_plotted_is_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "comparison" / "models.parquet"
    models = pl.read_parquet(path).with_columns(position_fraction_mean=pl.lit(None, pl.Float64))
    models.write_parquet(path)
    compare(results, "--include-dense", "--terminal")
    captured = capsys.readouterr()
    assert captured.out.count("total parameters (billions)") == 2
    assert "Not plotted: no model has positions affected" in captured.err


def test_small_letters_are_dense_and_large_ones_moe() -> None:
    models = pl.DataFrame({"model": [f"m{k}" for k in range(60)], "kind": ["dense", "moe"] * 30})
    found = letters(models)
    assert found["m0"] == "a" and found["m1"] == "A" and found["m2"] == "b"
    assert found["m52"] == "*"


def test_a_plot_of_nothing_is_refused() -> None:
    with pytest.raises(StudyError, match="nothing to plot"):
        terminal_scatter(made_up_comparison(0), {}, x="total_params_b", y="n_systematic", title="", x_title="")


@pytest.mark.parametrize("sizes", [[0.135], [0.135, 0.135], [0.9], [1.0], [0.1349, 0.135], [7.0, 7.0], [0.1, 1000.0]])
def test_models_of_one_size_are_plotted(sizes: list[float]) -> None:
    names = [f"m{k}" for k in range(len(sizes))]
    models = pl.DataFrame({"model": names, "kind": ["dense"] * len(sizes), "x": sizes, "y": range(3, 3 + len(sizes))})
    drawn = terminal_scatter(models, letters(models), x="x", y="y", title="", x_title="")
    assert all(drawn.count(letter) == 1 for letter in letters(models).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "mixtrl"], "no such model"),
        (["--preset", "dettmers"], "did you mean 'dettmers2022'"),
    ],
)
def test_mistakes_are_named(results: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(StudyError) as error:
        compare(results, *arguments)
    assert message in str(error.value)


def test_no_comparison_yet(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such table yet"):
        compare(tmp_path)


@pytest.mark.parametrize(("kind", "n"), [("dense", 1), ("dense", 3), ("moe", 1), ("moe", 2)])
def test_models_of_one_kind_are_a_study(results: Path, kind: str, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "comparison" / "models.parquet"
    table = pl.read_parquet(path).filter(kind=kind)
    names = table["model"].unique(maintain_order=True).head(n).to_list()
    table.filter(pl.col("model").is_in(names)).write_parquet(path)
    compare(results, "--terminal")
    told = capsys.readouterr()
    assert all(name in told.out for name in names)
    assert "Left out" not in told.err


def test_a_definition_that_marks_everything_is_marked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "comparison" / "models.parquet"
    table = pl.read_parquet(path)
    model = expected(results)["model"][0]
    is_odd = (pl.col("model") == model) & (pl.col("preset") == "dettmers2022")
    whole = {"n_systematic": 640, "d_model_share": 1.0}
    changed = [pl.when(is_odd).then(pl.lit(value)).otherwise(name).alias(name) for name, value in whole.items()]
    # Tables of before know no such column.
    table.with_columns(changed).drop("is_degenerate").write_parquet(path)
    with_intervals(results)
    for output_format in ("table", "markdown", "latex"):
        compare(results, "--include-dense", "--format", output_format)
        text = capsys.readouterr().out.replace("\\", "")
        assert "640*" in text and text.count("degenerate") == 1, output_format
        compare(results, "--preset", "residual", "--include-dense", "--format", output_format)
        assert "degenerate" not in capsys.readouterr().out
    compare(results, "--include-dense", "--format", "csv")
    rows = pl.read_csv(io.StringIO(capsys.readouterr().out))
    assert rows.filter("is_degenerate")["model"].to_list() == [model]


def test_an_empty_study(results: Path) -> None:
    schemas.ModelComparison.create_empty().write_parquet(results / "comparison" / "models.parquet")
    with pytest.raises(StudyError, match="has no model"):
        compare(results, "--include-dense")


def test_special_characters_are_escaped() -> None:
    columns = {name: COLUMNS[name] for name in ("model", "n_systematic")}
    frame = pl.DataFrame({"model": ["a_b|c%&<x>\\"], "n_systematic": [1200]})
    assert markdown_table(frame, columns).splitlines()[-1] == r"| a\_b\|c%&\<x\>\\ | 1,200 |"
    assert r"a\_b\textbar{}c\%\&\textless{}x\textgreater{}\textbackslash{} & 1,200 \\" in latex_table(
        frame, columns, caption="50 %"
    )
