"""What the tests of `schemas.comparison` say, in sentences: verdict, effect, p, and what could have been seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_moe.filtering import Preset
from outlier_moe.report.sentences import Finding, between, counted, have, listed, of_all

LEVEL = 0.05

AXES = {"total_params_b": "total parameters", "active_params_b": "active parameters", "perplexity": "perplexity"}
MEASURES = {
    "layer_fraction_mean": "the share of layers",
    "position_fraction_mean": "the share of positions",
    "n_systematic": "the number of systematic features",
}


def _of_preset(table: pl.DataFrame, preset: Preset) -> pl.DataFrame:
    chosen = table.filter(preset=preset.name, first_token="included")
    enums = [name for name, dtype in chosen.schema.items() if isinstance(dtype, pl.Enum)]
    return chosen.with_columns(pl.col(enums).cast(pl.String))


def transition_findings(table: pl.DataFrame | None, preset: Preset) -> list[Finding]:
    """Whether figures jump along an axis, over all models.

    Args:
        table: `PhaseTransition`, if there is one.
        preset: The preset to speak of.
    """
    if table is None or table.is_empty():
        return []
    chosen = _of_preset(table, preset).filter(
        pl.col("x").is_in(list(AXES)), pl.col("y").is_in(list(MEASURES)), group="all"
    )
    rows = chosen.rows(named=True)
    if not rows:
        return []
    tested = [row for row in rows if row["p_value"] is not None]
    details = [_transition(row) for row in tested]
    for (axis, reason), silent in _by_reason(rows).items():
        details.append(f"{listed(silent)} along {axis}: nothing can be said, {reason}")
    basis = f"n = {counted(max(row['n_models'] for row in rows), 'model')}; permutation tests for a change point"
    basis += f", q over all {len(table):,} of the table" if tested else ""
    return [Finding("Is there a jump?", _verdict(tested), basis, details=tuple(details))]


def _by_reason(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["p_value"] is None:
            reasons.setdefault((AXES[row["x"]], row["reason"]), []).append(MEASURES[row["y"]])
    return reasons


def _verdict(tested: list[dict[str, Any]]) -> str:
    if not tested:
        return "These models are too few to say whether anything jumps."
    told = {
        verdict: [f"{MEASURES[row['y']]} along {AXES[row['x']]}" for row in tested if row["verdict"] == verdict]
        for verdict in ("jump", "trend", "undecided")
    }
    parts = [
        f"a jump in {listed(told['jump'])}" if told["jump"] else "",
        f"a gradual trend in {listed(told['trend'])}" if told["trend"] else "",
        f"a dependence too few models can describe in {listed(told['undecided'])}" if told["undecided"] else "",
    ]
    seen = listed([part for part in parts if part])
    n_none = len(tested) - sum(map(len, told.values()))
    rest = (
        f"none in {'all' if n_none == len(tested) else 'the other'} {counted(n_none, 'figure')} tried" if n_none else ""
    )
    if not seen:
        return "No jump and no trend is seen along total parameters, active parameters or perplexity." if rest else ""
    return f"There is {seen}{f'; {rest}' if rest else ''}."


def _transition(row: Mapping[str, Any]) -> str:
    what = f"{MEASURES[row['y']]} along {AXES[row['x']]}"
    tests = f"p = {row['p_value']:.2g}, q = {row['q_value']:.2g}"
    if row["kendall_tau"] is not None:
        tests += f", Kendall's τ = {row['kendall_tau']:.2f}"
    if row["verdict"] == "jump":
        where = f"{row['location']:.3g}" + between(row["location_low"], row["location_high"], ".3g")
        return f"{what}: at {where} from {_level(row, 'before')} to {_level(row, 'after')} ({tests})"
    seen = row["detectable_jump"]
    size = f"{100 * seen:.0f} points" if seen and "fraction" in row["y"] else f"{seen:,.3g}" if seen else ""
    power = f"; a jump of {size} would be seen {row['power']:.0%} of the time" if seen else ""
    return f"{what}: {_VERDICTS[row['verdict']]} ({tests}{power})"


_VERDICTS = {"none": "nothing seen", "trend": "gradual", "undecided": "undecided"}


def _level(row: Mapping[str, Any], name: str) -> str:
    return _amount(row["y"], row[name])


def _amount(figure: str, value: float) -> str:
    return f"{value:.0%}" if "fraction" in figure else f"{value:,.3g}"


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
    chosen = _of_preset(table, preset).filter(y="n_systematic")
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
    basis = f"rank tests of the number of systematic features, two-sided; q over all {len(table):,} tests of the table"
    finding = Finding("Dense against MoE, tested", _difference(tested), basis, details=tuple(details))
    return [finding, *_sparsity(chosen, len(table))]


def _difference(tested: list[dict[str, Any]]) -> str:
    if not tested:
        return "These models allow no test of dense against MoE."
    apart = [row for row in tested if row["q_value"] <= LEVEL]
    if not apart:
        return "Dense and MoE models are not told apart by how many systematic features they have."
    told = listed(
        [
            f"{word} systematic features over {listed([_QUESTIONS[row['question']] for row in rows])}"
            for word, rows in (
                ("fewer", [row for row in apart if row["effect"] <= 0]),
                ("more", [row for row in apart if row["effect"] > 0]),
            )
            if rows
        ]
    )
    rest = len(tested) - len(apart)
    more = f"; {counted(rest, 'other comparison')} {'does' if rest == 1 else 'do'} not tell them apart" if rest else ""
    return f"MoE models have {told}{more}."


def _sizes(row: Mapping[str, Any]) -> str:
    if row["n_pairs"] is not None:
        return counted(row["n_pairs"], "pair")
    return f"{row['n_dense']} dense, {row['n_moe']} MoE"


def _effect(row: Mapping[str, Any]) -> str:
    effect = f"effect {row['effect']:+z.2f}{between(row['low'], row['high'], '+z.2f')}"
    limit = row["smallest_p_value"]
    least = f", and so few cannot give less than p = {limit:.2g}" if limit is not None and limit > LEVEL else ""
    return f"{effect}, p = {row['p_value']:.2g}, q = {row['q_value']:.2g}{least}"


def _sparsity(chosen: pl.DataFrame, n_tests: int) -> list[Finding]:
    names = {"sparsity_of_moe": "among MoE models", "sparsity_of_all": "among all models"}
    parts, details = [], []
    for question, name in names.items():
        rows = chosen.filter(pl.col("p_value").is_not_null(), question=question, test="kendall")
        for row in rows.iter_rows(named=True):
            # The share of active parameters falls as sparsity grows.
            direction = "fewer" if row["effect"] > 0 else "more"
            noun = "" if parts else " systematic features"
            parts.append(f"{direction if row['q_value'] <= LEVEL else 'neither more nor fewer'}{noun} {name}")
            tau = f"Kendall's τ with the active share {row['effect']:+z.2f}{between(row['low'], row['high'], '+z.2f')}"
            n = counted(row["n_dense"] + row["n_moe"], "model")
            details.append(f"{name} ({n}): {tau}, p = {row['p_value']:.2g}, q = {row['q_value']:.2g}")
    if not parts:
        return []
    text = f"As far as can be seen, sparser models have {listed(parts)}."
    basis = f"rank correlation, two-sided; q over all {n_tests:,} tests of the table"
    return [Finding("Does sparsity matter?", text, basis, details=tuple(details))]


def pair_findings(table: pl.DataFrame | None, preset: Preset) -> list[Finding]:
    """The MoE models beside the dense ones nearest to them in active parameters.

    Args:
        table: `MatchedPair`, if there is one.
        preset: The preset to speak of.
    """
    if table is None or table.is_empty():
        return []
    rows = _of_preset(table, preset).filter(pl.col("is_matched"), matched_by="active_params_b", y="n_systematic")
    known = rows.drop_nulls(["moe_y", "dense_y"]).sort("factor", "moe").rows(named=True)
    if not known:
        return []
    told = [f"{row['moe']} {row['moe_y']:,.0f}, {row['dense']} {row['dense_y']:,.0f}" for row in known]
    fewer = sum(row["moe_y"] < row["dense_y"] for row in known)
    beside = "Beside the dense model with as many active parameters"
    text = f"{beside}, {fewer} of {len(known)} MoE models have fewer features."
    basis = f"n = {counted(len(known), 'pair')}, at most a factor of {rows['factor'].max():.2g} apart"
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
    tested = table.filter(pl.col("q_value").is_not_null())
    if tested.is_empty():
        return []
    told, n_apart = [], 0
    for (model,), rows in tested.group_by("model", maintain_order=True):
        apart = rows.filter(pl.col("q_value") <= LEVEL)
        n_apart += len(apart)
        effect = rows["cramers_v"].median()
        told.append(f"{model}: {len(apart)} of {counted(len(rows), 'layer')}, median Cramér's V {effect:.2f}")
    text = (
        f"Tokens that carry outliers go to other experts than the rest in {n_apart} of {counted(len(tested), 'layer')}."
    )
    n = int(tested["n_sequences"].max() or 0)  # type: ignore[arg-type]
    basis = f"n = {counted(n, 'sequence')} a layer; sign flips of sequences, false discovery rate {LEVEL:.0%}"
    return [Finding("Where outlier tokens are routed", text, basis, details=tuple(told))]


def verification_findings(table: pl.DataFrame | None) -> list[Finding]:
    """What others published, held against these recordings.

    Args:
        table: `Verification` of all models, if there is one.
    """
    if table is None or table.is_empty():
        return []
    n = {verdict: len(table.filter(verdict=verdict)) for verdict in ("reproduced", "not reproduced", "not comparable")}
    tried = n["reproduced"] + n["not reproduced"]
    if tried == 0:
        text = f"None of {counted(len(table), 'published figure')} can be compared with these recordings."
    else:
        text = f"Of {counted(tried, 'published figure')} that can be compared, {n['reproduced']} reproduced."
    missed = table.filter(verdict="not reproduced")
    claims = [f"not reproduced in {model}: {claim}" for model, claim in missed.select("model", "claim").iter_rows()]
    basis = f"n = {counted(len(table), 'published figure')}, {n['not comparable']} not comparable"
    return [Finding("Against what others published", text, basis, details=tuple(claims))]
