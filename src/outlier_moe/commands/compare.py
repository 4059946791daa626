"""`outlier-moe compare`: the models of the study side by side, as a table, as plots, and for other programs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from outlier_moe.commands.definitions import tell_definitions, tell_differences, with_definitions
from outlier_moe.commands.places import RESULTS
from outlier_moe.commands.tables import degenerate_note, read_table, tell_degenerate, tell_nonfinite, with_marks
from outlier_moe.errors import StudyError, nearest
from outlier_moe.statistics.degenerate import MARK, with_degenerate
from outlier_moe.tables import files as table_files
from outlier_moe.tables.titles import COMPARED
from outlier_moe.terminal.figures import with_ends
from outlier_moe.terminal.presentation import Column, show_frame, terminal_width
from outlier_moe.terminal.table_formats import latex_table, markdown_table

CompareFormat = Literal["table", "csv", "json", "markdown", "latex"]

COLUMNS = {
    "model": Column("model", folds=True, spare=-1),
    "kind": Column("kind"),
    "total_params_b": Column("total\n(B)", "decimal"),
    "active_params_b": Column("active\n(B)", "decimal"),
    "perplexity": Column("per-\nplexity", "decimal"),
    "n_systematic": Column("outlier\nfeatures", "count"),
    "n_pairs": Column("pairs with\na sequence", "count", spare=2),
    "layer_fraction_mean": Column("layers\n%", "percent"),
    "position_fraction_mean": Column("positions\n%", "percent"),
    "peak_largest": Column("largest\n|x|", "magnitude"),
}
_INTERVALS = ("n_systematic", "layer_fraction_mean", "position_fraction_mean")
_ALWAYS = ("total_params_b", "active_params_b", *_INTERVALS)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "compare",
        help="MoE models (and dense ones) side by side: tables, plots, exports",
        description="MoE models side by side; with --include-dense or --models, dense ones too.",
    )
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="these models only, whatever their kind")
    parser.add_argument("--include-dense", action="store_true", help="dense models too")
    parser.add_argument("--preset", default="dettmers2022", help="which definition, or all (default: %(default)s)")
    parser.add_argument("--without-first-token", action="store_true", help="leave each sequence's first token out")
    parser.add_argument(
        "--terminal", action="store_true", help="plots below the table; to the other stream where it is for a program"
    )
    parser.add_argument("--format", choices=get_args(CompareFormat), default="table", help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the pipeline's results (default: ./results)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the comparison: the result on standard output, what was left out on the other.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If there is no comparison yet, or nothing of it was asked for.
    """
    path = arguments.results / "comparison" / "models.parquet"
    needs = [*COLUMNS, "preset", "first_token", "d_model_share", "n_nonfinite"]
    table = with_degenerate(read_table(path, remedy="Run snakemake (or make demo) first.", needs=needs))
    models = _of_preset(table, path, arguments)
    chosen = _chosen(models, arguments)
    intervals = path.with_name("intervals.parquet")
    _print(_with_intervals(chosen, intervals), path, arguments)
    systematic = [arguments.results / model / "systematic.parquet" for model in chosen["model"].unique()]
    tell_differences(path, [intervals, *sorted(systematic)])
    if arguments.terminal:
        # A program reads the table from standard output; a person sees the plots all the same.
        _plot(chosen, is_beside=arguments.format != "table")


def _of_preset(models: pl.DataFrame, path: Path, arguments: argparse.Namespace) -> pl.DataFrame:
    first_token = "excluded" if arguments.without_first_token else "included"
    if models.is_empty():
        raise StudyError(
            "The comparison has no model: none of the study could be compared.",
            file=path,
            expected="at least one model",
            remedy="logs/compare_models.log says why each was left out.",
        )
    models = models.filter(pl.col("first_token").cast(pl.String) == first_token)
    if arguments.preset == "all":
        return models
    known = models["preset"].unique().to_list()
    if arguments.preset not in known:
        remedy = nearest(arguments.preset, [*known, "all"])
        raise StudyError("The comparison has no such preset.", file=path, got=arguments.preset, remedy=remedy)
    return models.filter(preset=arguments.preset)


def _chosen(models: pl.DataFrame, arguments: argparse.Namespace) -> pl.DataFrame:
    known = models["model"].unique(maintain_order=True).to_list()
    if arguments.models:
        for name in arguments.models:
            if name not in known:
                remedy = nearest(name, known)
                raise StudyError("The comparison has no such model.", key="--models", got=name, remedy=remedy)
        return models.filter(pl.col("model").is_in(arguments.models))
    if arguments.include_dense:
        return models
    if models["kind"].n_unique() < 2:
        # A study of one kind is compared as it is.
        return models
    moe = models.filter(pl.col("kind").cast(pl.String) == "moe")
    left_out = models.filter(pl.col("kind").cast(pl.String) != "moe")["model"].unique(maintain_order=True).to_list()
    sys.stderr.write(f"Left out, since they are dense (--include-dense): {', '.join(left_out)}\n")
    return moe


def _with_intervals(models: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The comparison with the interval of each figure that has one, as `FIGURE_low` and `FIGURE_high`."""
    if not path.exists():
        return models
    key = ["model", "preset", "first_token"]
    intervals = table_files.read_table(path).with_columns(
        pl.col("figure").cast(pl.String), pl.col("first_token").cast(models.schema["first_token"])
    )
    for figure in intervals["figure"].unique(maintain_order=True):
        if figure in models.columns:
            names = {"low": f"{figure}_low", "high": f"{figure}_high"}
            ends = intervals.filter(figure=figure).select(*key, "low", "high").rename(names)
            models = models.join(ends, on=key, how="left", maintain_order="left")
    return models


def _print(models: pl.DataFrame, path: Path, arguments: argparse.Namespace) -> None:
    models = with_definitions(models, path)
    if arguments.format == "csv":
        sys.stdout.write(models.write_csv())
        return
    if arguments.format == "json":
        sys.stdout.write(models.write_json() + "\n")
        return
    columns = {
        name: column
        for name, column in {"preset": Column("preset"), **COLUMNS}.items()
        if (name in _ALWAYS or not models[name].is_null().all())
        and not (name == "preset" and arguments.preset != "all")
    }
    first = ", without each sequence's first token" if arguments.without_first_token else ""
    title = f"Outlier features, preset {arguments.preset}{first}"
    shown, note = with_marks(models).select(list(columns)), degenerate_note(models)
    if arguments.format == "markdown":
        sys.stdout.write(markdown_table(shown, columns))
        sys.stdout.write(f"\n\\{note}\n" if note else "")
    elif arguments.format == "latex":
        sys.stdout.write(latex_table(shown, columns, caption=". ".join(filter(None, [title, note]))))
    else:
        _show(models, columns, title, is_marked=arguments.terminal)
        tell_definitions(path, models["preset"])
        tell_degenerate(models)
        tell_nonfinite(models)


def _show(models: pl.DataFrame, columns: dict[str, Column], title: str, *, is_marked: bool) -> None:
    """The table on a terminal, with intervals, and with the letters that stand for models in plots."""
    marked = with_marks(models)
    cells = {name: [column.written(value) for value in marked[name]] for name, column in columns.items()}
    heads = {name: replace(column, style="text") for name, column in columns.items()}
    for name in _INTERVALS:
        cells[name] = _written(models, name, columns[name])
    # Both sizes in one column, so that the intervals fit beside them.
    sizes = zip(cells.pop("total_params_b"), cells.pop("active_params_b"), strict=True)
    del heads["active_params_b"]
    heads["total_params_b"] = Column("params (B)\n total / active")
    cells["total_params_b"] = [f"{total:>7} /{active:>6}" for total, active in sizes]
    if is_marked:
        from outlier_moe.terminal.plots import letters

        marks = letters(_one_a_model(models))
        heads = {"mark": Column(""), **heads}
        cells["mark"] = [marks[model] for model in models["model"]]
    shown = pl.DataFrame({name: cells[name] for name in heads})
    section = "preset" if "preset" in heads else None
    if section:
        shown = shown.sort(section, maintain_order=True)
        heads = {name: column for name, column in heads.items() if name != section}
    show_frame(shown, heads, output_format="table", title=title, section=section)


def _written(models: pl.DataFrame, name: str, column: Column) -> list[str]:
    """Figures with their intervals, each right-aligned, a count with its mark."""
    texts = with_marks(models)["n_systematic"] if name == "n_systematic" else models[name]
    values, ends = [column.written(text) for text in texts], [""] * len(models)
    if f"{name}_low" in models.columns and column.style != "text":
        known = models.select(name, f"{name}_low", f"{name}_high").iter_rows()
        for row, (value, low, high) in enumerate(known):
            if value is not None and low is not None:
                # Whole numbers and percentages: a table has little room.
                shown = with_ends(value, low, high, column.style, digits=0)
                mark = values[row][-1] if values[row].endswith(MARK) else ""
                values[row], ends[row] = f"{shown.value}{mark}", f" ({shown.low}–{shown.high})"
    width = max(map(len, values), default=0)
    return [value.rjust(width) + end for value, end in zip(values, ends, strict=True)]


def _one_a_model(models: pl.DataFrame) -> pl.DataFrame:
    return models.unique("model", keep="first", maintain_order=True)


def _plot(models: pl.DataFrame, *, is_beside: bool) -> None:
    stream = sys.stderr if is_beside else sys.stdout
    from outlier_moe.terminal.plots import letters, terminal_scatter

    width = min(80, terminal_width(of_errors=is_beside))
    marks = letters(_one_a_model(models))
    if is_beside:
        # The table beside it, which says whose the letters are, is for a program.
        stream.write(", ".join(f"{letter} {model}" for model, letter in marks.items()) + "\n")
    for preset in models["preset"].unique(maintain_order=True):
        rows = models.filter(preset=preset).with_columns(pl.col("layer_fraction_mean", "position_fraction_mean") * 100)
        for figure in _INTERVALS:
            title = COMPARED[figure].axis
            if rows[figure].is_null().all():
                sys.stderr.write(f"Not plotted: no model has {title} by {preset}.\n")
                continue
            stream.write(
                terminal_scatter(
                    rows,
                    marks,
                    x="total_params_b",
                    y=figure,
                    title=f"{title}, {preset}",
                    x_title=COMPARED["total_params_b"].axis,
                    width=width,
                    has_colour=stream.isatty(),
                )
                + "\n"
            )
