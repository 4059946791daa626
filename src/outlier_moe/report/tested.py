"""Sentences about tests: the verdicts of the tables, with effects and q-values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_moe.report.sentences import Finding, counted, listed, percent, with_interval
from outlier_moe.statistics.published import is_own
from outlier_moe.tables.titles import COMPARED
from outlier_moe.terminal.figures import p_value, plain

_QUESTIONS = {
    "dense_against_moe": "MoE against dense models",
    "matched_total_params_b": "MoE in pairs of like total parameters",
    "matched_active_params_b": "MoE in pairs of like active parameters",
    "matched_perplexity": "MoE in pairs of like perplexity",
    "sparsity_of_moe": "MoE models with a larger active share",
    "sparsity_of_all": "models of both kinds with a larger active share",
}
_COMPARED = {
    "higher": "more features",
    "lower": "fewer features",
    "none": "no difference seen",
    "too_few": "too few to tell",
}


def dense_and_moe(rows: pl.DataFrame, tests: pl.DataFrame | None) -> Finding | None:
    """Medians side by side, and whether dense and MoE models differ, matched by size or not.

    Args:
        rows: The models' rows of the comparison by one preset.
        tests: `RankTestResult` of the same preset, if there is one.
    """
    medians = dict(rows.group_by(pl.col("kind").cast(pl.String)).agg(pl.col("n_systematic").median()).rows())
    if len(medians) < 2:
        return None
    text = f"The median MoE model has {plain(medians['moe'])} systematic features, the median dense model"
    text += f" {plain(medians['dense'])}."
    details = []
    if tests is not None:
        chosen = tests.filter(pl.col("verdict").is_not_null(), pl.col("test") != "spearman", y="n_systematic")
        for question, words in _QUESTIONS.items():
            found = chosen.filter(question=question).rows(named=True)
            details += [f"{words}: {_compared(row)}" for row in found]
    n_dense, n_moe = (len(rows.filter(kind=kind)) for kind in ("dense", "moe"))
    over = "; two-sided rank tests, q over all of the table" if details else ""
    basis = f"n = {n_dense} dense and {n_moe} MoE models{over}"
    return Finding("Dense against MoE", text, basis, details=tuple(details))


def _compared(row: Mapping[str, Any]) -> str:
    n = row["n_dense"] + row["n_moe"] if row["n_pairs"] is None else row["n_pairs"]
    effect = with_interval(row["effect"], row["low"], row["high"], "decimal")
    return f"{_COMPARED[row['verdict']]} (n = {n}, effect {effect}, q {p_value(row['q_value'])})"


_SEEN = {
    "jump": "a jump",
    "rise": "a rise without a jump",
    "fall": "a fall",
    "mixed": "a rise and a fall",
    "none": "nothing seen",
    "too_few": "too few models to tell",
}


def jumps(table: pl.DataFrame | None) -> Finding | None:
    """Whether figures jump along an axis, over all models.

    Args:
        table: `PhaseTransition` of one preset, if there is one.
    """
    if table is None:
        return None
    tested = table.filter(pl.col("verdict").is_not_null(), group="all")
    if tested.is_empty():
        return None
    told = []
    for verdict, words in _SEEN.items():
        rows = tested.filter(pl.col("verdict").cast(pl.String) == verdict).rows(named=True)
        if rows:
            is_seen = verdict not in ("none", "too_few")
            where = "; ".join(map(_place, rows)) if is_seen else f"{len(rows)} of {counted(len(tested), 'figure')}"
            told.append(f"{words} in {where}")
    text = f"Along size and perplexity: {'; '.join(told)}."
    details = tuple(_along(row) for row in tested.rows(named=True))
    least, most = tested["n_models"].min(), tested["n_models"].max()
    n = f"{most}" if least == most else f"{least} to {most}"
    basis = f"n = {n} models; permutation tests of a change point and Kendall's τ, q over all of the table"
    return Finding("Is there a jump?", text, basis, details=details)


def _along(row: Mapping[str, Any]) -> str:
    """What one figure does along one axis."""
    text = f"{_place(row)}: {_SEEN[row['verdict']]}"
    if row["verdict"] == "jump":
        where = with_interval(row["location"], row["location_low"], row["location_high"], "significant")
        text += f" at {where}, from {_amount(row['y'], row['before'])} to {_amount(row['y'], row['after'])}"
    if row["verdict"] == "none" and row["detectable_jump"] is not None:
        text += f", though a jump of {_amount(row['y'], row['detectable_jump'])} would be"
        text += f" in {percent(row['power'])} of such studies"
    q_values = {
        "a change": row["q_value_either"] if row["verdict"] == "fall" else row["q_value"],
        "a step on a line": row["q_value_beyond_line"],
        "Kendall's τ": row["kendall_q_value"],
    }
    said = ", ".join(f"of {name} {p_value(q)}" for name, q in q_values.items() if q is not None)
    return f"{text} (q {said})"


def _place(row: Mapping[str, Any]) -> str:
    falling = "falling " if row["x"] == "perplexity" else ""
    return f"{COMPARED[row['y']].words} along {falling}{COMPARED[row['x']].words}"


def _amount(figure: str, value: float) -> str:
    return f"{100 * value:.0f} %" if "fraction" in figure else plain(value, 3)


def experts_of_outliers(table: pl.DataFrame | None) -> Finding | None:
    """Whether tokens that carry outliers go to other experts.

    Args:
        table: `OutlierRouting` of all MoE models, if there is one.
    """
    tested = None if table is None else table.drop_nulls("verdict")
    if tested is None or tested.is_empty():
        return None

    def told(rows: pl.DataFrame) -> str:
        n = {verdict: len(rows.filter(verdict=verdict)) for verdict in ("differs", "too_few")}
        few = f", {n['too_few']} with too few sequences to tell" if n["too_few"] else ""
        return f"{n['differs']} of {counted(len(rows), 'layer')}{few}"

    text = f"Tokens that carry outliers are seen to go to other experts than the rest in {told(tested)}."
    details = [
        f"{model}: {told(rows)}; median Cramér's V {rows['cramers_v'].median():.2f}"
        for (model,), rows in tested.group_by("model", maintain_order=True)
    ]
    n = listed([str(n) for n in tested["n_sequences"].unique().sort()])
    basis = f"n = {n} sequences a layer, whose signs are flipped; q over a model's layers"
    return Finding("Where outlier tokens are routed", text, basis, details=tuple(details))


def published(table: pl.DataFrame | None) -> Finding | None:
    """Published figures compared with these recordings; nothing if none is comparable.

    Args:
        table: `Verification` of all models, if there is one.
    """
    if table is None:
        return None
    tried = table.filter(~is_own(), pl.col("verdict").cast(pl.String) != "not comparable")
    if tried.is_empty():
        return None
    missed = tried.filter(verdict="not reproduced").select("model", "claim").rows()
    text = f"Of {counted(len(tried), 'published figure')} that can be compared, {len(tried) - len(missed)} reproduced."
    details = [f"not reproduced in {model}: {claim}" for model, claim in missed]
    basis = f"{len(table.filter(~is_own())) - len(tried)} more cannot be compared"
    return Finding("Against what others published", text, basis, details=tuple(details))
