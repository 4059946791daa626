"""What a sweep answers: tables of differences and trends, and in words what of them stands out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.plots.sweep_panels import TITLES, short_title
from outlier_moe.report.sentences import Statement, counted, listed
from outlier_moe.report.tables import Cell, Table, sort_key
from outlier_moe.scale_sweep.study import ALL_SCALES
from outlier_moe.terminal.figures import plain, with_ends

LEVEL = 0.05
"""Largest q-value of what is called found."""
MOMENTS = {"end": "at the end", "matched": "at matched loss"}
_ORDER = {figure: place for place, figure in enumerate(TITLES)}

Row = Mapping[str, Any]


class Question(NamedTuple):
    """One question that is asked of every figure: how two optimisers differ, or how one goes with size."""

    head: str
    """The question in words."""
    who: str
    """Whose, as tables say it."""
    basis: str
    """What it rests on."""
    up: str
    """What a figure is where the estimate is above 0."""
    down: str
    """What it is where the estimate is below."""
    estimate: str
    """The estimate's column."""
    rows: Mapping[str, Mapping[str, Row]]
    """The row of each figure and moment."""


def difference_questions(comparisons: pl.DataFrame) -> list[Question]:
    """A question for each two optimisers: over all scales where there are several, of the only one where not."""
    found: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in comparisons.iter_rows(named=True):
        of_figure = found.setdefault((row["optimizer"], row["other"]), {}).setdefault(row["figure"], {})
        if row["scale"] == ALL_SCALES or row["moment"] not in of_figure:
            of_figure[row["moment"]] = row
    return [
        Question(
            f"{pair[0]} beside {pair[1]}", " less ".join(pair), _pairs(rows), "higher", "lower", "difference", rows
        )
        for pair, rows in found.items()
    ]


def _pairs(rows: Mapping[str, Mapping[str, Row]]) -> str:
    most = max((row for of_figure in rows.values() for row in of_figure.values()), key=lambda row: row["n_pairs"])
    n_pairs, n_seeds = most["n_pairs"], most["n_seeds"]
    if most["scale"] != ALL_SCALES or not n_seeds:
        return f"{counted(n_pairs, 'pair')} of runs at {most['scale']}"
    return f"{n_pairs} pairs of runs: {counted(n_seeds, 'seed')} at {n_pairs // n_seeds} scales"


def trend_questions(trends: pl.DataFrame) -> list[Question]:
    """A question for each optimiser whose figures there are at several scales."""
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for row in trends.filter(pl.col("slope").is_not_null()).iter_rows(named=True):
        found.setdefault(row["optimizer"], {}).setdefault(row["figure"], {})[row["moment"]] = row
    questions = []
    for optimizer, rows in found.items():
        every = [row for of_figure in rows.values() for row in of_figure.values()]
        n_seeds, n_scales = (max(row[name] for row in every) for name in ("n_seeds", "n_scales"))
        basis = f"{counted(n_seeds, 'seed')} at {n_scales} scales"
        questions.append(Question(f"{optimizer} with size", optimizer, basis, "rising", "falling", "slope", rows))
    return questions


def standing_out(questions: Iterable[Question]) -> list[Statement]:
    """What of each question is found, in both moments or in one, and never more than its tests and intervals hold."""
    return [Statement(f"{one.head} ({one.basis})", _found(one)) for one in questions]


def _found(question: Question) -> list[str]:
    tested = {figure for figure, of in question.rows.items() if any(row["q_value"] is not None for row in of.values())}
    if not tested:
        return [f"Nothing is tested: {_why(question)}.", *(_intervals(question) or ["The table has single numbers."])]
    kinds: dict[str, list[str]] = {}
    for figure in sorted(tested, key=_place):
        kinds.setdefault(_kind(question, question.rows[figure]), []).append(figure)
    neither = len(kinds.pop("neither", []))
    turned = [figure for figure in question.rows if any(map(_is_turned, question.rows[figure].values()))]
    if turned:
        kinds.setdefault("turned", sorted(turned, key=_place))
    if not kinds:
        least = min(row["q_value"] for row in _every(question) if row["q_value"] is not None)
        none = f"none has q ≤ {LEVEL:g} in either moment; the least q is {plain(least, 2)}"
        said = f"Of {counted(len(tested), 'figure')} {none}."
        return [said, *_intervals(question)]
    said = [
        f"{words}: {_directions(question, kinds[kind], kind)}.{_doubts(question, kinds[kind], kind)}"
        for kind, words in _KINDS.items()
        if kind in kinds
    ]
    if turned:
        said.append(
            f"With q ≤ {LEVEL:g} at matched loss, but of either sign by what lies between two checkpoints:"
            f" {_names(kinds['turned'])}."
        )
    if neither:
        said.append(f"In neither moment: the other {counted(neither, 'figure')} of {len(tested)}.")
    return said


_KINDS = {
    "both": "Both at the end and at matched loss",
    "against": "At the end, and at matched loss the other way round",
    "end": "At the end, and not found at matched loss",
    "matched": "At matched loss, and not found at the end",
    "end alone": "At the end (at matched loss there is no test)",
    "matched alone": "At matched loss (at the end there is no test)",
}


def _kind(question: Question, of_figure: Mapping[str, Row]) -> str:
    """In which moments a figure is found."""
    found = [moment for moment in MOMENTS if moment in of_figure and _is_found(of_figure[moment])]
    if not found:
        return "neither"
    if len(found) == 2:
        signs = {of_figure[moment][question.estimate] > 0 for moment in found}
        return "both" if len(signs) == 1 else "against"
    n_tested = sum(row["q_value"] is not None for row in of_figure.values())
    return found[0] if n_tested > 1 else f"{found[0]} alone"


def _is_found(row: Row) -> bool:
    return _is_below_level(row) and not _is_turned(row)


def _is_below_level(row: Row) -> bool:
    return row["q_value"] is not None and row["q_value"] <= LEVEL


def _is_turned(row: Row) -> bool:
    """Whether a test finds it, and other values between the two checkpoints would turn its sign round."""
    low, high = row.get("bracket_low"), row.get("bracket_high")
    return _is_below_level(row) and low is not None and high is not None and low <= 0 <= high


def _directions(question: Question, figures: Sequence[str], kind: str) -> str:
    moment = "matched" if kind.startswith("matched") else "end"
    rises = [figure for figure in figures if question.rows[figure][moment][question.estimate] > 0]
    falls = [figure for figure in figures if figure not in rises]
    pairs = ((question.up, rises), (question.down, falls))
    return "; ".join(f"{word} {_names(of)}" for word, of in pairs if of)


def _doubts(question: Question, figures: Sequence[str], kind: str) -> str:
    """Where intervals say something else than tests.

    A difference that no test finds in the other moment is not gone where its interval there holds no 0; and one that is
    found by pairs of runs may lie within what whole seeds vary by.
    """
    found = list(MOMENTS) if kind in ("both", "against") else [kind.removesuffix(" alone")]
    inside = [figure for figure in figures if any(_holds_zero(question.rows[figure][moment]) for moment in found)]
    said = f" The interval over seeds holds 0 all the same: {_names(inside)}." if inside else ""
    other = {"end": "matched", "matched": "end"}.get(kind)
    if other is None:
        return said
    outside = [figure for figure in figures if _excludes_zero(question.rows[figure][other])]
    signs = {
        figure: question.rows[figure][kind][question.estimate] * question.rows[figure][other][question.estimate]
        for figure in outside
    }
    alike, against = ([figure for figure in outside if (signs[figure] > 0) == is_alike] for is_alike in (True, False))
    where = MOMENTS[other]
    said += f" {where.capitalize()}, too, the interval holds no 0: {_names(alike)}." if alike else ""
    return said + (f" {where.capitalize()} the interval lies beyond 0: {_names(against)}." if against else "")


def _names(figures: Sequence[str]) -> str:
    return listed([short_title(figure) for figure in figures])


def _intervals(question: Question) -> list[str]:
    """How many intervals hold no 0, where no test says more."""
    said = []
    for moment, where in MOMENTS.items():
        rows = [of[moment] for of in question.rows.values() if moment in of and of[moment]["low"] is not None]
        if rows:
            said.append(f"{where} {sum(_excludes_zero(row) for row in rows)} of {len(rows)}")
    return [f"Intervals that hold no 0: {', '.join(said)}."] if said else []


def _why(question: Question) -> str:
    reasons = [row["reason"] for row in _every(question) if row["reason"]]
    return reasons[0] if reasons else "too few runs"


def _excludes_zero(row: Row) -> bool:
    return row["low"] is not None and (row["low"] > 0 or row["high"] < 0)


def _holds_zero(row: Row) -> bool:
    return row["low"] is not None and row["low"] <= 0 <= row["high"]


def _every(question: Question) -> list[Row]:
    return [row for of_figure in question.rows.values() for row in of_figure.values()]


def _place(figure: str) -> int:
    return _ORDER.get(figure, len(_ORDER))


def answer_tables(name: str, comparisons: pl.DataFrame, trends: pl.DataFrame) -> list[Table]:
    """The answers, a row per figure and question, both moments beside each other.

    Args:
        name: What the tables' names begin with.
        comparisons: `scale_sweep.summary.SweepTables.comparisons`.
        trends: `scale_sweep.summary.SweepTables.trends`.
    """
    tested = {"p_value": "p", "q_value": "q"}
    asked = [
        (
            "differences",
            "How optimisers differ",
            "The first less the second, paired by seed, over all scales where there are several; intervals of 95 %.",
            difference_questions(comparisons),
            {"difference": "difference", **tested},
        ),
        (
            "slopes",
            "How figures go with size",
            "Change of the figure per doubling of the parameters, with intervals of 95 %; p and q of Kendall's tau.",
            trend_questions(trends),
            {"slope": "slope", **tested},
        ),
    ]
    told = f" In bold what has q ≤ {LEVEL:g}, with all tests of its family accounted for."
    return [
        _table(f"{name}-{kind}", title, text + told, questions, columns)
        for kind, title, text, questions, columns in asked
        if questions
    ]


def _table(name: str, title: str, text: str, questions: Sequence[Question], columns: Mapping[str, str]) -> Table:
    heads = [("figure", False), ("optimisers" if "difference" in columns else "optimiser", False)]
    heads += [
        (head if head in ("p", "q") else f"{head} {where}", True)
        for where in MOMENTS.values()
        for head in columns.values()
    ]
    asked = sorted(
        ((_place(figure), number, figure) for number, one in enumerate(questions) for figure in one.rows),
    )
    rows = []
    for place, number, figure in asked:
        question = questions[number]
        cells = [Cell(short_title(figure), f"{place:03}"), Cell(question.who, question.who)]
        for moment in MOMENTS:
            row = question.rows[figure].get(moment)
            cells += [_cell(row, column, question.estimate) for column in columns]
        rows.append(cells)
    return Table(name, title, text, heads, rows)


def _cell(row: Row | None, column: str, estimate: str) -> Cell:
    value = None if row is None else row.get(column)
    if row is None or value is None:
        return Cell("–", kind="number")
    kind = "number strong" if _is_found(row) and column in (estimate, "q_value") else "number"
    if column != estimate:
        return Cell(plain(value, 3) if column == "q_value" else plain(value, 2), sort_key(value), kind)
    if row["low"] is None:
        return Cell(plain(value, 3, signed=True), sort_key(value), kind)
    shown = with_ends(value, row["low"], row["high"], "significant", signed=True)
    return Cell(shown.value, sort_key(value), kind, shown.interval)
