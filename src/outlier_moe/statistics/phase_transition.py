"""Is there a jump? Figures of many models against their size and perplexity, over all models, dense ones, MoE ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64

from outlier_moe.schemas.tested import PhaseTransition, TrendComparison
from outlier_moe.statistics.comparable import false_discovery_rates, on_one_text
from outlier_moe.statistics.transition import Transition, TransitionOptions, transition
from outlier_moe.statistics.trend_models import TrendFit

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

    Args:
        comparison: The table `ModelComparison`.
        resamples: The tables of `resample_model`; with them the interval of the change point's place covers the
            sampling of sequences too.
        options: How to look.
    """
    options = options or TransitionOptions()
    kept, left_out = on_one_text(comparison)
    transitions, trends = [], []
    for (preset, first_token), rows in kept.group_by("preset", "first_token", maintain_order=True):
        draws = {} if resamples is None else _draws(resamples.filter(preset=preset, first_token=first_token))
        for group, axis, measure in _questions(rows):
            chosen = rows if group == "all" else rows.filter(kind=group)
            chosen = chosen.filter(pl.col(axis).is_not_null(), pl.col(measure).is_not_null())
            found = _transition_of(chosen, axis, measure, draws, options)
            key = {"preset": preset, "first_token": first_token, "group": group, "x": axis, "y": measure}
            n_missing = (len(rows) if group == "all" else len(rows.filter(kind=group))) - len(chosen)
            transitions.append({**key, "n_missing": n_missing, **_statement(found, AXES[axis], options)})
            trends += [{**key, **_described(fit, found, AXES[axis])} for fit in found.fits]
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
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("p_value").cast(pl.Float64))
    table = table.with_columns(q_value=false_discovery_rates(table["p_value"]))
    return PhaseTransition.validate(table.select(PhaseTransition.column_names()), cast=True)


def _trend_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    if not rows:
        return TrendComparison.create_empty()
    table = pl.DataFrame(rows, infer_schema_length=None)
    key = ["preset", "first_token", "group", "x", "y"]
    likelihood = (-pl.col("delta_aicc").cast(pl.Float64) / 2).exp()
    table = table.with_columns(weight=likelihood / likelihood.sum().over(key))
    return TrendComparison.validate(table.select(TrendComparison.column_names()), cast=True)
