"""Tables as Markdown and LaTeX, for papers and issues: the same cells as on a terminal, special characters escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from outlier_moe.terminal.presentation import Column, flat_title

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "≥": r"$\geq$",
}
_MARKDOWN = {letter: f"\\{letter}" for letter in "\\`*_{}[]<>|"}


def written_rows(frame: pl.DataFrame, columns: Mapping[str, Column]) -> list[list[str]]:
    """The cells as a person reads them."""
    return [
        [column.written(row[name]) for name, column in columns.items()]
        for row in frame.select(list(columns)).iter_rows(named=True)
    ]


def markdown_table(frame: pl.DataFrame, columns: Mapping[str, Column]) -> str:
    """A table in GitHub's Markdown.

    Args:
        frame: The table.
        columns: The columns to show, in that order.
    """
    rule = [":---" if column.style == "text" else "---:" for column in columns.values()]
    rows = [_heads(columns), *written_rows(frame, columns)]
    escaped = [[_escaped(cell, _MARKDOWN) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]]) + "\n"


def latex_table(frame: pl.DataFrame, columns: Mapping[str, Column], *, caption: str) -> str:
    """A table in LaTeX, with the rules of the package booktabs.

    Args:
        frame: The table.
        columns: The columns to show, in that order.
        caption: What stands above it.
    """
    alignment = "".join("l" if column.style == "text" else "r" for column in columns.values())
    heads, *rows = (
        " & ".join(_escaped(cell, _LATEX) for cell in row) + r" \\"
        for row in [_heads(columns), *written_rows(frame, columns)]
    )
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(caption, _LATEX)}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            heads,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _heads(columns: Mapping[str, Column]) -> Sequence[str]:
    # On a terminal headings may take several lines.
    return [flat_title(column) for column in columns.values()]


def _escaped(text: str, special: Mapping[str, str]) -> str:
    return "".join(special.get(letter, letter) for letter in text).replace("\n", " ")
