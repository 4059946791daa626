"""When a published figure counts as reproduced, and the columns that say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from outlier_moe.statistics.published import Recorded, is_sibling
from outlier_moe.statistics.reference import reference_table

Verdict = Literal["reproduced", "not reproduced", "not comparable"]


@dataclass(frozen=True)
class VerifyOptions:
    """Limits within which a figure counts as reproduced."""

    top: int = 10
    """Rank up to which a feature's peak is among the largest of its tap."""
    most_systematic: float = 0.1
    """Share of the features up to which a preset's being systematic says something of one of them."""
    factor: float = 2.0
    """Largest factor between a published and a measured magnitude."""
    factor_of_maxima: float = 4.0
    """The same for a model's largest value over all text."""
    count_tolerance: float = 0.25
    """Largest relative difference of a count."""
    points: float = 10.0
    """Largest difference of two percentages."""
    perplexity_tolerance: float = 0.15
    """Largest relative difference of a perplexity; the survey's are read off a plot."""


def rows_of(name: Any, facts: Recorded) -> Iterator[dict[str, Any]]:
    """The rows of a reference table on the model or a sibling of it."""
    for row in reference_table(name).iter_rows(named=True):
        if facts.repo is not None and is_sibling(row["repo"], facts.repo):
            yield row


def is_within(measured: float, published: float, factor: float) -> bool:
    """Whether a measured magnitude is a published one up to a factor, either way."""
    return published / factor <= measured <= published * factor


def verdict_columns(is_reproduced: bool, reason: str) -> dict[str, Any]:
    """The columns of a figure that could be compared."""
    verdict: Verdict = "reproduced" if is_reproduced else "not reproduced"
    return {"verdict": verdict, "reason": reason}


def incomparable(reason: str) -> dict[str, Any]:
    """The columns of a figure that could not be compared, with the reason."""
    verdict: Verdict = "not comparable"
    return {"verdict": verdict, "reason": reason}
