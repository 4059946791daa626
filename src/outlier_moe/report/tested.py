"""What the other tests of `schemas.comparison` say, in sentences: effect, p, and what so few cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.report.sentences import Finding, counted, have, listed, of_all, of_preset, up_to, with_interval
from outlier_moe.statistics.published import VERDICTS, is_own
from outlier_moe.terminal.figures import p_value, plain

LEVEL = 0.05

_QUESTIONS = {
    "dense_against_moe": "all models",
    "matched_total_params_b": "pairs of like total parameters",
    "matched_active_params_b": "pairs of like active parameters",
    "matched_perplexity": "pairs of like perplexity",
}


def dense_moe_findings(table: pl.DataFrame | None, preset: Preset) -> list[Finding]:
    """Whether dense and MoE models differ, matched by size or not, and whether sparsity goes with outliers.

    Args:
        table: `RankTestResult`, if there is one.
        preset: The preset to speak of.
    """
    if table is None or table.is_empty():
        return []
    chosen = of_preset(table, preset).filter(y="n_systematic")
    rows = [row for question in _QUESTIONS for row in chosen.filter(question=question).iter_rows(named=True)]
    if not rows:
        return []
    tested = [row for row in rows if row["p_value"] is not None]
    details = [
        f"{_QUESTIONS[row['question']]} ({_sizes(row)}): {_effect(row)}"
        if row["p_value"] is not None
        else f"{_QUESTIONS[row['question']]}: not tested, {row['reason']}"
        for row in rows
    ]
    n_tests = table["q_value"].count()
    over = f"; q over the {counted(n_tests, 'test')} of the table" if n_tests else ""
    basis = f"rank tests of the systematic features, two-sided{over}"
    finding = Finding("Dense against MoE, tested", _difference(tested), basis, details=tuple(details))
    return [finding, *_sparsity(chosen, n_tests)]


def _difference(tested: list[dict[str, Any]]) -> str:
    if not tested:
        return "These models allow no test of dense against MoE."
    apart = [row for row in tested if row["q_value"] <= LEVEL]
    few = [row for row in tested if _is_hopeless(row)]
    if len(few) == len(tested):
        least = min(row["smallest_p_value"] for row in few)
        what = "Whether dense and MoE models differ in how many systematic features they have cannot be told"
        return f"{what}: so few cannot give less than p {p_value(least)}."
    told = [
        f"{word} systematic features over {listed([_QUESTIONS[row['question']] for row in rows])}"
        f" (q {up_to([row['q_value'] for row in rows])})"
        for word, rows in (
            ("fewer", [row for row in apart if row["effect"] <= 0]),
            ("more", [row for row in apart if row["effect"] > 0]),
        )
        if rows
    ]
    rest = [row for row in tested if row not in apart and row not in few]
    parts = [f"MoE models have {listed(told)}"] if told else []
    if rest:
        over = listed([_QUESTIONS[row["question"]] for row in rest])
        parts.append(
            f"over {over} they are not told apart"
            if told
            else f"Dense and MoE models are not told apart by how many systematic features they have over {over}"
        )
    if few:
        parts.append(f"over {listed([_QUESTIONS[row['question']] for row in few])} there are too few to tell")
    return f"{'; '.join(parts)}."


def _is_hopeless(row: Mapping[str, Any]) -> bool:
    """Whether no figures of so many models could be told apart."""
    return row["smallest_p_value"] is not None and row["smallest_p_value"] > LEVEL


def _sizes(row: Mapping[str, Any]) -> str:
    if row["n_pairs"] is not None:
        return counted(row["n_pairs"], "pair")
    return f"{row['n_dense']} dense, {row['n_moe']} MoE"


def _effect(row: Mapping[str, Any]) -> str:
    effect = f"effect {with_interval(row['effect'], row['low'], row['high'], 'decimal', signed=True)}"
    limit = row["smallest_p_value"]
    least = f", and so few cannot give less than p {p_value(limit)}" if limit is not None and limit > LEVEL else ""
    return f"{effect}, p {p_value(row['p_value'])}, q {p_value(row['q_value'])}{least}"


def _sparsity(chosen: pl.DataFrame, n_tests: int) -> list[Finding]:
    names = {"sparsity_of_moe": "among MoE models", "sparsity_of_all": "among all models"}
    parts, details = [], []
    for question, name in names.items():
        rows = chosen.filter(pl.col("p_value").is_not_null(), question=question, test="kendall")
        for row in rows.iter_rows(named=True):
            parts.append(_sparser(row, name))
            details.append(f"{name} ({counted(row['n_dense'] + row['n_moe'], 'model')}): {_tau(row)}")
    if not parts:
        return []
    text = f"Sparser models have {'; '.join(parts)}."
    basis = f"rank correlation with the count, two-sided; q over the {counted(n_tests, 'test')} of the table"
    return [Finding("Does sparsity matter?", text, basis, details=tuple(details))]


def _sparser(row: Mapping[str, Any], among: str) -> str:
    if _is_hopeless(row):
        least = f"so few cannot give less than p {p_value(row['smallest_p_value'])}"
        return f"fewer or more systematic features {among}, which cannot be told: {least}"
    q = f"(q {p_value(row['q_value'])})"
    if row["q_value"] > LEVEL:
        return f"neither fewer nor more systematic features, as far as is seen, {among} {q}"
    # The share of active parameters falls as sparsity grows.
    return f"{'fewer' if row['effect'] > 0 else 'more'} systematic features {among} {q}"


def _tau(row: Mapping[str, Any]) -> str:
    effect = with_interval(row["effect"], row["low"], row["high"], "decimal", signed=True)
    tau = f"Kendall's τ with the active share {effect}"
    return f"{tau}, p {p_value(row['p_value'])}, q {p_value(row['q_value'])}"


def pair_findings(table: pl.DataFrame | None, preset: Preset) -> list[Finding]:
    """The MoE models beside the dense ones nearest to them in active parameters.

    Args:
        table: `MatchedPair`, if there is one.
        preset: The preset to speak of.
    """
    if table is None or table.is_empty():
        return []
    rows = of_preset(table, preset).filter(pl.col("is_matched"), matched_by="active_params_b", y="n_systematic")
    known = rows.drop_nulls(["moe_y", "dense_y"]).sort("factor", "moe").rows(named=True)
    if not known:
        return []
    told = [f"{row['moe']} {row['moe_y']:,.0f}, {row['dense']} {row['dense_y']:,.0f}" for row in known]
    fewer = sum(row["moe_y"] < row["dense_y"] for row in known)
    beside = "Beside the dense model with as many active parameters"
    text = f"{beside}, {fewer} of {len(known)} MoE models have fewer features."
    factor = float(rows["factor"].max() or 0)  # type: ignore[arg-type]
    basis = f"n = {counted(len(known), 'pair')}, at most a factor of {plain(factor, 2)} apart"
    return [Finding("Nearest pairs", text, basis, details=tuple(told))]


def super_expert_findings(table: pl.DataFrame | None) -> list[Finding]:
    """Which experts make the massive activations.

    Args:
        table: `SuperExpert` of all MoE models, with a column `model`, if there is one.
    """
    if table is None or table.is_empty():
        return []
    models = table["model"].unique(maintain_order=True).to_list()
    found = table.filter("is_super").sort(["model", "peak"], descending=[False, True])
    told = []
    for (model,), rows in found.group_by("model", maintain_order=True):
        named = [f"L{r['layer']} E{r['expert']} ({r['peak']:,.0f})" for r in rows.head(3).iter_rows(named=True)]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        told.append(f"{model}: {', '.join(named)}{more}")
    which = f"{of_all(len(told), len(models))} with recorded experts {have(len(models))}"
    text = f"{which} super experts: few that make massive activations."
    basis = f"n = {counted(len(table), 'expert')} of {counted(len(models), 'model')}"
    return [Finding("Super experts", text, basis, details=tuple(told))]


def routing_findings(table: pl.DataFrame | None) -> list[Finding]:
    """Whether tokens that carry outliers go to other experts.

    Args:
        table: `OutlierRouting` of all MoE models, if there is one.
    """
    if table is None or table.is_empty():
        return []
    # All signs flipped alike give the same length: two of 2^n choices, at least, reach the one observed.
    smallest = 2.0 ** (1 - pl.col("n_sequences").cast(pl.Int64))
    tested = table.filter(pl.col("q_value").is_not_null()).with_columns(smallest_p_value=smallest)
    if tested.is_empty():
        return []
    details = [_routed(str(model), rows) for (model,), rows in tested.group_by("model", maintain_order=True)]
    sizes = [int(n) for n in tested["n_sequences"].unique().sort()]
    n = f"{sizes[0]} to {sizes[-1]} sequences" if len(sizes) > 1 else counted(sizes[0], "sequence")
    basis = f"n = {n} a layer; sign flips of sequences, false discovery rate {LEVEL:.0%} over a model's layers"
    return [Finding("Where outlier tokens are routed", _routing(tested), basis, details=tuple(details))]


def _routing(tested: pl.DataFrame) -> str:
    possible = tested.filter(pl.col("smallest_p_value") <= LEVEL)
    few = len(tested) - len(possible)
    if possible.is_empty():
        least = float(tested["smallest_p_value"].min() or 0)  # type: ignore[arg-type]
        what = "Whether tokens that carry outliers go to other experts than the rest cannot be told"
        return f"{what}: sign flips of so few sequences cannot give less than p {p_value(least)}."
    apart = len(possible.filter(pl.col("q_value") <= LEVEL))
    text = "Tokens that carry outliers are seen to go to other experts than the rest in"
    more = f"; in {few} more, too few sequences have both to tell" if few else ""
    return f"{text} {apart} of {counted(len(possible), 'layer')}{more}."


def _routed(model: str, rows: pl.DataFrame) -> str:
    possible = rows.filter(pl.col("smallest_p_value") <= LEVEL)
    apart = f"{len(possible.filter(pl.col('q_value') <= LEVEL))} of {counted(len(possible), 'layer')}"
    told = apart if len(possible) else f"cannot be told in {counted(len(rows), 'layer')}"
    n = int(rows["n_sequences"].max() or 0)  # type: ignore[arg-type]
    p, q = (p_value(rows[name].min()) for name in ("p_value", "q_value"))  # type: ignore[arg-type]
    effect = f"median Cramér's V {rows['cramers_v'].median():.2f}"
    tests = f"{effect}, least p {p}, q {q}, n = {counted(n, 'sequence')}"
    return f"{model}: {told}, {tests}"


def verification_findings(table: pl.DataFrame | None) -> list[Finding]:
    """What others published, held against these recordings.

    Args:
        table: `Verification` of all models, if there is one.
    """
    if table is None or table.is_empty():
        return []
    others = table.filter(~is_own())
    n = {verdict: len(others.filter(verdict=verdict)) for verdict in VERDICTS}
    tried = n["reproduced"] + n["not reproduced"]
    if others.is_empty():
        text = "Nobody else is known to have published figures of these models."
    elif tried == 0:
        text = f"None of {counted(len(others), 'published figure')} can be compared with these recordings."
    else:
        text = f"Of {counted(tried, 'published figure')} that can be compared, {n['reproduced']} reproduced."
    missed = table.filter(verdict="not reproduced")
    claims = [f"not reproduced in {model}: {claim}" for model, claim in missed.select("model", "claim").iter_rows()]
    basis = f"n = {counted(len(others), 'published figure')}, {n['not comparable']} not comparable"
    own = table.filter(is_own(), pl.col("verdict").cast(pl.String) != "not comparable")
    if len(own):
        again = len(own.filter(verdict="reproduced"))
        basis += f"; this project's own earlier measurements, not counted: {again} of {len(own)} found again"
    return [Finding("Against what others published", text, basis, details=tuple(claims))]
