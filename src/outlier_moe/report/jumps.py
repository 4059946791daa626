"""Whether figures jump, rise or fall with size, in sentences: what is seen, what is not, and what cannot be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.report.sentences import Finding, counted, listed, of_preset, up_to, with_interval
from outlier_moe.terminal.figures import p_value, plain

AXES = {
    "total_params_b": "total parameters",
    "active_params_b": "active parameters",
    "perplexity": "falling perplexity",
}
"""What the models get stronger along: a rise is one with their strength."""

MEASURES = {
    "layer_fraction_mean": "the share of layers",
    "position_fraction_mean": "the share of positions",
    "n_systematic": "the number of systematic features",
}
_TESTS = ("q_value", "q_value_either", "kendall_q_value")
"""What is corrected together."""


def transition_findings(table: pl.DataFrame | None, preset: Preset) -> list[Finding]:
    """Whether figures jump along an axis, over all models.

    Args:
        table: `PhaseTransition`, if there is one.
        preset: The preset to speak of.
    """
    if table is None or table.is_empty():
        return []
    chosen = of_preset(table, preset).filter(
        pl.col("x").is_in(list(AXES)), pl.col("y").is_in(list(MEASURES)), group="all"
    )
    rows = chosen.rows(named=True)
    if not rows:
        return []
    tested = [row for row in rows if row["p_value"] is not None]
    details = [_detail(row) for row in tested]
    for reason, silent in _by_reason(rows).items():
        details.append(f"{_figures(silent)}: nothing can be said, {reason}")
    text = _sentence(tested) if tested else _untested(rows)
    return [Finding("Is there a jump?", text, _basis(table, tested or rows), details=tuple(details))]


def _basis(table: pl.DataFrame, rows: list[dict[str, Any]]) -> str:
    sizes = sorted({row["n_models"] for row in rows})
    least = f"{sizes[0]} to " if len(sizes) > 1 else ""
    n_tests = sum(table[name].count() for name in _TESTS)
    text = f"n = {least}{counted(sizes[-1], 'model')}"
    if not n_tests:
        return text
    figures = counted(table["q_value"].count(), "figure")
    text += (
        f"; permutation tests for a change point and Kendall's τ, q over the {n_tests:,} tests of the table's {figures}"
    )
    text += ", and over those that rise for a step on a line"
    some = any(row["verdict"] == "jump" for row in rows)
    return f"{text}; places: 95 % of the resampled models" if some else text


def _by_reason(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    reasons: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["p_value"] is None:
            reasons.setdefault(row["reason"], []).append(row)
    return reasons


def _untested(rows: list[dict[str, Any]]) -> str:
    why = "; ".join(f"for {_measures(silent)}, {reason}" for reason, silent in _by_reason(rows).items())
    return f"Whether anything jumps, rises or falls with size cannot be told: {why}."


def _sentence(tested: list[dict[str, Any]]) -> str:
    by: dict[str, list[dict[str, Any]]] = {}
    for row in tested:
        by.setdefault(row["verdict"], []).append(row)
    seen = [f"a jump in {_figures(by['jump'])} ({_jump_q(by['jump'])})"] if "jump" in by else []
    for verdict, words in _SEEN.items():
        if verdict in by:
            q = up_to([_surest(row) for row in by[verdict]])
            seen.append(f"{words.format(_figures(by[verdict]))} (q {q})")
    rest = []
    if "none" in by:
        what = "none of these" if seen else "no jump, rise or fall"
        rest.append(f"{what} is seen in {_figures(by['none'])}{_power(by['none'])}")
    if "too_few" in by:
        least = min(row["smallest_p_value"] for row in by["too_few"])
        n = max(row["n_models"] for row in by["too_few"])
        rest.append(
            f"whether there is a jump in {_figures(by['too_few'])} cannot be told:"
            f" {counted(n, 'model')} cannot give less than p {p_value(least)} there"
        )
    text = "; ".join([f"there is {'; '.join(seen)}", *rest] if seen else rest)
    return f"{text[0].upper()}{text[1:]}."


_SEEN = {
    "rise": "a rise without a jump that stands out in {}",
    "fall": "a fall in {}",
    "mixed": "a rise and a fall in {}",
}


def _jump_q(rows: list[dict[str, Any]]) -> str:
    beyond = up_to([row["q_value_beyond_line"] for row in rows])
    return f"q {up_to([row['q_value'] for row in rows])}; for a step on a line, q {beyond}"


def _surest(row: Mapping[str, Any]) -> float:
    """The q-value that what is said of a row rests on."""
    of_change = {"rise": ["q_value"], "fall": ["q_value_either"]}.get(row["verdict"], ["q_value", "q_value_either"])
    known = [row[name] for name in (*of_change, "kendall_q_value") if row[name] is not None]
    return min(known) if row["verdict"] != "mixed" else max(q for q in known if q <= row["level"])


def _power(rows: list[dict[str, Any]]) -> str:
    """The jump that would have been seen: per figure the largest over the axes, so that it holds for all of them."""
    seen, unseen = [], []
    for measure in dict.fromkeys(row["y"] for row in rows):
        sizes = [row["detectable_jump"] for row in rows if row["y"] == measure]
        if any(_is_beyond(measure, size) for size in sizes):
            unseen.append(MEASURES[measure])
        else:
            seen.append(f"{_size(measure, max(sizes))} in {MEASURES[measure]}")
    chance = f" given p ≤ {rows[0]['level']:g} in {rows[0]['power']:.0%} of such studies"
    told = f", where a jump of {listed(seen)} would have{chance}" if seen else ""
    if not unseen:
        return told
    return f"{told}{', and' if seen else ', though'} no possible jump in {listed(unseen)} would have{chance}"


def _is_beyond(measure: str, size: float | None) -> bool:
    """Whether a jump is larger than the figure allows, or than any that was simulated."""
    return size is None or ("fraction" in measure and size > 1)


def _size(measure: str, jump: float) -> str:
    return f"{100 * jump:.0f} points" if "fraction" in measure else f"{plain(jump, 3)}"


def _measures(rows: Iterable[Mapping[str, Any]]) -> str:
    return listed([MEASURES[name] for name in dict.fromkeys(row["y"] for row in rows)])


def _figures(rows: list[dict[str, Any]]) -> str:
    """Figures with their axes, those of the same axes together."""
    axes: dict[str, list[str]] = {}
    for row in rows:
        axes.setdefault(MEASURES[row["y"]], []).append(AXES[row["x"]])
    by_axes: dict[str, list[str]] = {}
    for measure, names in axes.items():
        by_axes.setdefault(listed(names), []).append(measure)
    return ", and ".join(f"{listed(measures)} along {names}" for names, measures in by_axes.items())


def _detail(row: Mapping[str, Any]) -> str:
    """What was found in one figure along one axis, and all the tests that say so."""
    name = "_either" if row["verdict"] == "fall" else ""
    tests = [f"p {p_value(row[f'p_value{name}'])}, q {p_value(row[f'q_value{name}'])}"]
    if row["q_value_beyond_line"] is not None:
        tests.append(
            f"a step on a line p {p_value(row['p_value_beyond_line'])}, q {p_value(row['q_value_beyond_line'])}"
        )
    if row["kendall_tau"] is not None:
        of_order = f"p {p_value(row['kendall_p_value'])}, q {p_value(row['kendall_q_value'])}"
        tests.append(f"Kendall's τ = {row['kendall_tau']:+z.2f}, {of_order}")
    if row["verdict"] == "none":
        possible = not _is_beyond(row["y"], row["detectable_jump"])
        size = f"a jump of {_size(row['y'], row['detectable_jump'])}" if possible else "no possible jump"
        tests.append(f"{size} would give p ≤ {row['level']:g} {row['power']:.0%} of the time")
    what = f"{MEASURES[row['y']]} along {AXES[row['x']]}, n = {row['n_models']}"
    return f"{what}: {_told(row)} ({'; '.join(tests)})"


def _told(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "jump":
        where = with_interval(row["location"], row["location_low"], row["location_high"], "significant")
        return f"jumps at {where} from {_amount(row['y'], row['before'])} to {_amount(row['y'], row['after'])}"
    if row["verdict"] == "too_few":
        return f"cannot be told, so few cannot give less than p {p_value(row['smallest_p_value'])}"
    told = {"rise": "rises, no jump stands out", "fall": "falls", "mixed": "rises and falls", "none": "nothing seen"}
    return told[row["verdict"]]


def _amount(figure: str, value: float) -> str:
    return f"{value:.0%}" if "fraction" in figure else f"{plain(value, 3)}"
