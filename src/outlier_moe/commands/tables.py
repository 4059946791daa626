"""Reading the tables that the commands show."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from outlier_moe.errors import StudyError
from outlier_moe.statistics.degenerate import MARK, MARKED, is_degenerate, with_degenerate
from outlier_moe.tables import files as table_files
from outlier_moe.terminal.presentation import show_note


def tell_nonfinite(table: pl.DataFrame) -> None:
    """Say which models had activations that are NaN or infinite, which no figure includes."""
    some = table.filter(pl.col("n_nonfinite") > 0).unique("model", maintain_order=True)
    for model, n in some.select(pl.col("model").str.strip_chars(), "n_nonfinite").iter_rows():
        show_note(f"{model}: {n:,} activations were NaN or infinite and are in no figure.")


def with_marks(models: pl.DataFrame) -> pl.DataFrame:
    """The comparison for people: a count is text, with a mark where its definition is degenerate for the model.

    Args:
        models: Rows of `schemas.ModelComparison`, with or without `is_degenerate`.
    """
    told = with_degenerate(models).select("n_systematic", "is_degenerate").iter_rows()
    texts = [f"{count:,}{MARK if is_marked else ''}" for count, is_marked in told]
    return models.with_columns(n_systematic=pl.Series(texts, dtype=pl.String))


def degenerate_note(models: pl.DataFrame) -> str | None:
    """What the mark means, if any of the rows has one."""
    return MARKED if models.select(is_degenerate().any()).item() else None


def tell_degenerate(models: pl.DataFrame) -> None:
    """Say beneath a table for people what its marks mean."""
    if (note := degenerate_note(models)) is not None:
        show_note(note)


def read_table(path: Path, *, remedy: str, needs: Iterable[str] = ()) -> pl.DataFrame:
    """A Parquet table of the results.

    Args:
        path: Its file.
        remedy: What makes it, for whoever does not have it yet.
        needs: The columns that are asked of it.

    Raises:
        StudyError: If there is none, or it is damaged, or another table.
    """
    try:
        table = table_files.read_table(path)
    except FileNotFoundError as error:
        raise StudyError("There is no such table yet.", file=path, remedy=remedy) from error
    except OSError as error:
        raise StudyError(
            "A table cannot be read.",
            file=path,
            expected="a file in the folder that snakemake writes, named by --results",
            got=error.strerror or type(error).__name__,
        ) from error
    missing = [name for name in needs if name not in table.columns]
    if missing:
        raise StudyError(
            "A table lacks columns: it is of another version, or another table.",
            file=path,
            expected=f"the columns {', '.join(missing)} too",
            got=", ".join(table.columns[:8]) + (", ..." if len(table.columns) > 8 else ""),
            remedy=table_files.made_again(path),
        )
    return table
