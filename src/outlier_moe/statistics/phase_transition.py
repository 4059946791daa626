"""Is there a jump? Figures of many models against their size and perplexity, over all models, dense ones, MoE ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64

from outlier_moe.statistics.comparable import false_discovery_rates, on_one_text
from outlier_moe.statistics.transition import Evidence, Transition, TransitionOptions, Verdict, transition, verdict_of
from outlier_moe.statistics.trend_models import TrendFit
from outlier_moe.tables.tested import PhaseTransition, TrendComparison

Axis = Literal["total_params_b", "active_params_b", "perplexity"]
Group = Literal["all", "dense", "moe"]


class PhaseTransitions(NamedTuple):
    """The tables of `phase_transitions`."""

    transitions: pl.DataFrame
    """`PhaseTransition`: one row per preset, first token in or out, group of models, x and y."""
    trends: pl.DataFrame
    """`TrendComparison`: one row per description of each."""
    left_out: pl.DataFrame
    """`LeftOut`: the models that no row speaks of."""


class _Scale(NamedTuple):
    """How a column becomes an axis that grows with a model's strength."""

    is_log: bool
    falls: bool
    """Whether stronger models have less of it."""

    def of(self, values: Float64[np.ndarray, " model"]) -> Float64[np.ndarray, " model"]:
        values = np.log10(values) if self.is_log else values
        return -values if self.falls else values

    def back(self, x: float | None) -> float | None:
        if x is None:
            return None
        x = -x if self.falls else x
        return float(10**x) if self.is_log else x


AXES: Mapping[Axis, _Scale] = {
    "total_params_b": _Scale(is_log=True, falls=False),
    "active_params_b": _Scale(is_log=True, falls=False),
    "perplexity": _Scale(is_log=False, falls=True),
}

MEASURES = ("layer_fraction_mean", "position_fraction_mean", "n_systematic")
"""The figures that are looked at."""


def phase_transitions(
    comparison: pl.DataFrame, *, resamples: pl.DataFrame | None = None, options: TransitionOptions | None = None
) -> PhaseTransitions:
    """Look for a jump in each figure along each axis, over all models and over dense and MoE models alone.

    Whether a figure rises, falls or jumps is decided by q-values. By p-values a study of twenty models whose figures
    are noise would claim something in four cases of ten, and one whose figures rise gradually a jump in three.

    Args:
        comparison: The table `ModelComparison`.
        resamples: The tables of `resample_model`; with them the interval of the change point's place covers the
            sampling of sequences too.
        options: How to look.
    """
    options = options or TransitionOptions()
    kept, left_out = on_one_text(comparison)
    rows_of, tried, trends = [], [], []
    for (preset, first_token), rows in kept.group_by("preset", "first_token", maintain_order=True):
        if len(rows) < 2:
            # One model alone neither rises nor jumps.
            continue
        draws = {} if resamples is None else _draws(resamples.filter(preset=preset, first_token=first_token))
        for group, axis, measure in _questions(rows):
            chosen = rows if group == "all" else rows.filter(kind=group)
            chosen = chosen.filter(pl.col(axis).is_not_null(), pl.col(measure).is_not_null())
            found = _transition_of(chosen, axis, measure, draws, options)
            key = {"preset": preset, "first_token": first_token, "group": group, "x": axis, "y": measure}
            n_missing = (len(rows) if group == "all" else len(rows.filter(kind=group))) - len(chosen)
            rows_of.append({**key, "n_missing": n_missing, **_statement(found, AXES[axis], options)})
            tried.append(found)
            trends += [{**key, **_described(fit, found, AXES[axis])} for fit in found.fits]
    transitions = [
        {**row, **_columns(of)} for row, of in zip(rows_of, corrected(tried, level=options.level), strict=True)
    ]
    return PhaseTransitions(_transition_table(transitions), _trend_table(trends), left_out)


def _questions(rows: pl.DataFrame) -> list[tuple[Group, Axis, str]]:
    """Groups, axes and figures; a group's active parameters are no axis of their own where all of them are."""
    kinds = rows["kind"].unique().to_list()
    groups: list[Group] = ["all", *(kind for kind in ("dense", "moe") if kind in kinds and len(kinds) > 1)]
    questions = []
    for group in groups:
        chosen = rows if group == "all" else rows.filter(kind=group)
        same = bool((chosen["total_params_b"] == chosen["active_params_b"]).all())
        for axis in AXES:
            if not (axis == "active_params_b" and same):
                questions += [(group, axis, measure) for measure in MEASURES]
    return questions


def _draws(resamples: pl.DataFrame) -> dict[tuple[str, str], Float64[np.ndarray, " draw"]]:
    rows = resamples.filter(pl.col("figure").is_in(MEASURES)).select("model", "figure", "resamples")
    return {
        (model, figure): rows["resamples"][i].to_numpy().astype(np.float64)
        for i, (model, figure) in enumerate(rows.select("model", "figure").iter_rows())
    }


def _transition_of(
    rows: pl.DataFrame,
    axis: Axis,
    measure: str,
    draws: Mapping[tuple[str, str], Float64[np.ndarray, " draw"]],
    options: TransitionOptions,
) -> Transition:
    x = AXES[axis].of(rows[axis].cast(pl.Float64).to_numpy())
    y = rows[measure].cast(pl.Float64).to_numpy()
    of_models = [draws.get((model, measure), np.zeros(0)) for model in rows["model"]]
    n_draws = min((len(values) for values in of_models), default=0)
    # Without draws of every model the sampling of sequences is left out for all of them.
    stacked = np.stack([values[:n_draws] for values in of_models]) if n_draws else None
    return transition(x, y, options=options, draws=stacked)


def _statement(found: Transition, scale: _Scale, options: TransitionOptions) -> dict[str, Any]:
    ends = [scale.back(found.location_low), scale.back(found.location_high)]
    known = sorted(end for end in ends if end is not None)
    jump_sd, residual_sd = found.detectable_jump_sd, found.residual_sd
    return {
        **{name: value for name, value in found._asdict().items() if name != "fits"},
        "location": scale.back(found.location),
        "location_low": known[0] if known else None,
        "location_high": known[-1] if known else None,
        "jump": None if found.after is None or found.before is None else found.after - found.before,
        "alternative": options.alternative,
        "level": options.level,
        "power": options.power,
        "detectable_jump": None if jump_sd is None or residual_sd is None else jump_sd * residual_sd,
        "best_trend": found.best and found.best.model,
    }


class Corrected(NamedTuple):
    """What a figure does along an axis, where others were tried with it."""

    q_values: Evidence
    verdict: Verdict | None


def corrected(found: Sequence[Transition], *, level: float) -> list[Corrected]:
    """The q-values of figures that were tried together (Benjamini-Hochberg), and the verdicts by them.

    What says that a figure rises or falls is one family: the two p-values of a change point, and Kendall's, of each
    figure. Whether what rises jumps is another, of what rises alone.

    Args:
        found: Each figure along each axis.
        level: The false discovery rate.
    """
    n = len(found)
    of_change = [of.p_value for of in found], [of.p_value_either for of in found], [of.kendall_p_value for of in found]
    dependence = false_discovery_rates(
        pl.Series("p", [p for values in of_change for p in values], pl.Float64)
    ).to_list()
    families = zip(dependence[:n], dependence[n : 2 * n], dependence[2 * n :], strict=True)
    q_values = [Evidence(change, either, order, None) for change, either, order in families]
    rises = [verdict_of(of, q, level=level) == "rise" for of, q in zip(found, q_values, strict=True)]
    beyond = [of.p_value_beyond_line if is_rise else None for of, is_rise in zip(found, rises, strict=True)]
    of_line = false_discovery_rates(pl.Series("p", beyond, pl.Float64)).to_list()
    q_values = [q._replace(beyond_line=line) for q, line in zip(q_values, of_line, strict=True)]
    return [Corrected(q, verdict_of(of, q, level=level)) for of, q in zip(found, q_values, strict=True)]


def _columns(of: Corrected) -> dict[str, Any]:
    q = of.q_values
    return {
        "q_value": q.change,
        "q_value_either": q.change_either,
        "kendall_q_value": q.order,
        "q_value_beyond_line": q.beyond_line,
        "verdict": of.verdict,
    }


def _described(fit: TrendFit, found: Transition, scale: _Scale) -> dict[str, Any]:
    best = found.best
    delta = None if fit.aicc is None or best is None or best.aicc is None else fit.aicc - best.aicc
    return {
        **fit._asdict(),
        "location": scale.back(fit.location),
        # A width on a logarithmic axis is a factor.
        "width": None if fit.width is None else float(10**fit.width) if scale.is_log else fit.width,
        "delta_aicc": delta,
        "n_models": found.n_models,
    }


def _transition_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    if not rows:
        return PhaseTransition.create_empty()
    table = pl.DataFrame(rows, infer_schema_length=None)
    return PhaseTransition.validate(table.select(PhaseTransition.column_names()), cast=True)


def _trend_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    if not rows:
        return TrendComparison.create_empty()
    table = pl.DataFrame(rows, infer_schema_length=None)
    key = ["preset", "first_token", "group", "x", "y"]
    likelihood = (-pl.col("delta_aicc").cast(pl.Float64) / 2).exp()
    table = table.with_columns(weight=likelihood / likelihood.sum().over(key))
    return TrendComparison.validate(table.select(TrendComparison.column_names()), cast=True)
