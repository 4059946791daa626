"""No terminal is so narrow that a figure loses a digit: columns are left out whole, and named."""

from __future__ import annotations

import re
from collections.abc import Mapping

import polars as pl
import pytest

from outlier_moe import cli
from outlier_moe.commands import compare, cost, count_params, models, nodes, plan, top, verify
from outlier_moe.commands.tables import tell_degenerate, tell_nonfinite
from outlier_moe.scale_sweep import terminal_table
from outlier_moe.statistics.degenerate import MARKED
from outlier_moe.terminal import presentation
from outlier_moe.terminal.presentation import Column, least_wanted, show_frame, show_note, terminal_width
from outlier_moe.upcycling import summary

TABLES = {
    "show": cli._COMPARISON,
    "top": top.FEATURES,
    "top --experts": top.EXPERTS,
    "models": models.COLUMNS,
    "compare": compare.COLUMNS,
    "cost": cost._COLUMNS,
    "count-params": count_params._COLUMNS,
    "nodes": nodes._COLUMNS,
    "plan": plan._COLUMNS,
    "verify": verify.COLUMNS,
    "sweep": terminal_table.TABLE,
    "upcycling": summary.TABLE,
}
FIGURES = {"count": 1_234_567_890, "percent": 0.98765, "magnitude": 26_081_234.5, "decimal": 98_765.4321}


def frame_of(columns: Mapping[str, Column], n: int = 2) -> pl.DataFrame:
    """Large figures, and long names where a column may be folded."""

    def value(name: str, column: Column) -> object:
        if column.style != "text":
            return FIGURES[column.style]
        return "a-model-with-a-name-of-40-letters-8x22b" if column.folds else f"{26081.5:,} x"

    return pl.DataFrame({name: [value(name, column)] * n for name, column in columns.items()})


@pytest.fixture
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(presentation, "terminal_width", lambda: request.param)
    return request.param


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200], indirect=True)
@pytest.mark.parametrize("name", TABLES)
def test_figures_keep_their_digits(name: str, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    columns = TABLES[name]
    frame = frame_of(columns)
    show_frame(frame, columns, output_format="table", title="a title")
    printed = capsys.readouterr().out
    assert "…" not in printed and "..." not in printed
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= width
    body, _, left_out = printed.partition("Left out for want of room: ")
    whole = re.sub(r"\s+", " ", left_out)
    for key, column in columns.items():
        gone = presentation.flat_title(column) in whole
        if not column.folds:
            written = column.written(frame[key][0])
            assert gone or written in body, f"{key} is neither whole nor said to be left out"
    if width == 200:
        assert not left_out
    for row in body.splitlines():
        for number in re.findall(r"[\d,]{5,}(?:\.\d+)?", row):
            assert number in {"1,234,567,890", "26,081,234.5", "98,765.43", "26,081.5"}


def test_the_spare_go_first_and_the_first_never() -> None:
    columns = {"a": Column("a", spare=9), "b": Column("b"), "c": Column("c", spare=1), "d": Column("d")}
    gone = []
    while len(columns) > 1:
        gone.append(least_wanted(columns))
        del columns[gone[-1]]
    assert gone == ["c", "d", "b"]


@pytest.mark.parametrize("width", [40], indirect=True)
def test_long_names_are_folded_whole(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame({"model": ["deepseek-v3.2-exp-with-a-very-long-name-indeed"], "n": [26_081]})
    columns = {"model": Column("model", folds=True), "n": Column("n", "count")}
    show_frame(frame, columns, output_format="table", title="t")
    lines = capsys.readouterr().out.splitlines()
    assert any("26,081" in line for line in lines)
    said = "".join(line.replace("26,081", "").strip() for line in lines[3:])
    assert "deepseek-v3.2-exp-with-a-very-long-name-indeed" in said


@pytest.mark.parametrize("width", [40], indirect=True)
def test_headings_between_rows_are_whole(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame({"preset": ["dettmers2022_all_inputs"], "model": ["m"], "n": [26_081]})
    columns = {"model": Column("model", folds=True), "n": Column("n", "count"), "k": Column("k")}
    show_frame(frame.with_columns(k=pl.lit("x" * 20)), columns, output_format="table", title="t", section="preset")
    printed = capsys.readouterr().out
    assert "…" not in printed and "26,081" in printed


def test_programs_get_all_columns_at_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presentation, "terminal_width", lambda: 40)
    show_frame(frame_of(top.FEATURES), top.FEATURES, output_format="csv", title="")
    assert capsys.readouterr().out.splitlines()[0].split(",") == list(top.FEATURES)


def test_a_pipe_is_wide(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal_width() == presentation.PIPE_WIDTH


@pytest.mark.parametrize("width", [40, 60, 80], indirect=True)
def test_notes_end_their_lines_with_a_word(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    table = pl.DataFrame({"model": ["a-model", "b"], "n_nonfinite": [1234, 0], "d_model_share": [0.99, 0.01]})
    tell_degenerate(table)
    tell_nonfinite(table)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert printed.split()[: len(MARKED.split())] == MARKED.split()
    assert "a-model:" in printed.split() and "1,234" in printed.split()


@pytest.mark.parametrize("width", [40], indirect=True)
def test_a_word_longer_than_a_line_stays_whole(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = "results/" + "a-long-name/" * 5
    show_note(f"It is in {path} now", "and that is all")
    lines = capsys.readouterr().out.splitlines()
    assert path in lines and lines[-1] == "and that is all"
