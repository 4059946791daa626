"""How numbers are put into words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from outlier_moe.terminal.figures import Number, StyleOfNumber, with_ends


class Finding(NamedTuple):
    """One statement."""

    topic: str
    """What it is about, in a few words."""
    sentence: str
    basis: str
    """Number of models, sequences and tests behind it."""
    is_caveat: bool = False
    """Whether it limits how far other findings can be trusted."""
    details: tuple[str, ...] = ()
    """The numbers behind it, one a line."""


def counted(n: int, noun: str) -> str:
    """A number and its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def with_interval(value: Number, low: Number | None, high: Number | None, style: StyleOfNumber) -> str:
    """A figure, with its interval in brackets where there is one, in the same digits."""
    if low is None or high is None:
        return with_ends(value, value, value, style).value
    return str(with_ends(value, low, high, style))


def percent(share: float) -> str:
    """A share as it is spoken of."""
    return f"{100 * share:g} %"
