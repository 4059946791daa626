"""How findings are put into words."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.terminal.figures import Number, StyleOfNumber, p_value, with_ends


class Finding(NamedTuple):
    """One statement."""

    topic: str
    """What it is about, in a few words."""
    sentence: str
    """The statement."""
    basis: str
    """How many models, sequences and resamples it rests on."""
    is_caveat: bool = False
    """Whether it says how far the others can be trusted."""
    details: tuple[str, ...] = ()
    """The numbers behind it, one statement each."""


class Statement(NamedTuple):
    """What is said of one question."""

    head: str
    """The question, and what its answer rests on."""
    lines: list[str]
    """What is found."""


def counted(n: int, noun: str) -> str:
    """A number and its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def of_all(part: int, whole: int) -> str:
    """So many of all models."""
    if whole == 1:
        return "The one model" if part else "None of one model"
    return f"All {whole} models" if part == whole else f"{part or 'None'} of {whole} models"


def listed(words: list[str]) -> str:
    """Words as a sentence lists them."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def with_interval(
    value: Number, low: Number | None, high: Number | None, style: StyleOfNumber, *, signed: bool = False
) -> str:
    """A figure, with its interval in brackets where there is one, in the same digits."""
    if low is None or high is None:
        return with_ends(value, value, value, style, signed=signed).value
    return str(with_ends(value, low, high, style, signed=signed))


def percent(share: float) -> str:
    """A level as it is spoken of."""
    return f"{100 * share:g} %"


def up_to(values: list[float]) -> str:
    """The largest of some small values, so that a statement of all of them holds; itself if it is alone."""
    return f"{'' if len(values) == 1 else 'up to '}{p_value(max(values)).removeprefix('= ' if len(values) > 1 else '')}"


def of_preset(table: pl.DataFrame, preset: Preset) -> pl.DataFrame:
    """The rows of a preset with each sequence's first token, enums as strings."""
    chosen = table.filter(preset=preset.name, first_token="included")
    enums = [name for name, dtype in chosen.schema.items() if isinstance(dtype, pl.Enum)]
    return chosen.with_columns(pl.col(enums).cast(pl.String))


def have(whole: int) -> str:
    """The verb after `of_all`."""
    return "has" if whole == 1 else "have"
