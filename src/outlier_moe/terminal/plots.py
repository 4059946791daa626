"""Plots made of letters, for a terminal: each model is one, which the table beside them explains."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

import plotext
import polars as pl

from outlier_moe.errors import StudyError

# Two of the sixteen colours that every terminal has and that all kinds of colour vision keep apart.
_COLOURS = {"dense": "blue+", "moe": "orange+"}
_ELSE = "*"
_SEVERAL_SIZES = 1.01
_LETTERS = {"dense": string.ascii_lowercase, "moe": string.ascii_uppercase}


def letters(models: pl.DataFrame) -> dict[str, str]:
    """A letter for each model: small for dense ones, large for MoE ones; a star where an alphabet is used up.

    Args:
        models: Columns `model` and `kind`, one row a model.
    """
    left = {kind: iter(alphabet) for kind, alphabet in _LETTERS.items()}
    return {model: next(left[kind], _ELSE) for model, kind in models.select("model", "kind").iter_rows()}


def terminal_scatter(
    models: pl.DataFrame,
    marks: Mapping[str, str],
    *,
    x: str,
    y: str,
    title: str,
    x_title: str,
    width: int = 80,
    height: int = 18,
    has_colour: bool = False,
) -> str:
    """One figure of every model against another, on a logarithmic axis.

    Args:
        models: Rows of `schemas.ModelComparison`, one a model. Those that lack either figure are left out.
        marks: A letter for each model.
        x: The column across, above 0.
        y: The column upwards.
        title: What stands above.
        x_title: What stands below.
        width: Columns of the terminal.
        height: Lines.
        has_colour: Whether to colour the letters.

    Raises:
        StudyError: If no model has both figures.
    """
    shown = models.drop_nulls([x, y]).filter(pl.col(x) > 0)
    if shown.is_empty():
        raise StudyError(f"There is nothing to plot: no model has both {x} and {y}.")
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.theme("simple")
    figure.plot_size(width, height)
    _draw_room(figure, shown[x], float(shown[y][0]))
    for model, kind, across, up in shown.select("model", "kind", x, y).iter_rows():
        pixel = plotext.pixel(_COLOURS[kind]) if has_colour else plotext.pixel()
        figure.draw(figure.signal([float(across)], [float(up)], marker=plotext.marker(marks[model], pixel)))
    figure.title(title)
    figure.label(x_title)
    figure.ruler("x").scale("log")
    # A line may end in spaces that only make pipes longer.
    text = figure.build().string(colorless=not has_colour)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _draw_room(figure: Any, sizes: pl.Series, height: float) -> None:
    """Blanks on both sides of models that are (nearly) of one size.

    The axis that plotext makes of a single place goes from 1 below to 1 above it, and the logarithm of that fails for
    sizes up to 1, whatever limits are asked for.
    """
    least, most = float(sizes.min()), float(sizes.max())  # type: ignore[arg-type]
    if most < _SEVERAL_SIZES * least:
        figure.draw(figure.signal([least / 2, most * 2], [height] * 2, marker=" "))
