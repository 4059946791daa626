"""The answers of a sweep: how each figure changes with scale, and how optimisers differ, with intervals and tests.

Slopes and differences are means of one value for each seed, and so have two intervals: Student's, and the bootstrap's
over resampled seeds, which is too narrow where seeds are few (`seed_intervals.SIMULATED`). Tests take no side.

A q-value accounts for the tests of its family (Benjamini-Hochberg). A test that cannot give a p-value of `LEVEL`
however its values lie, for they are too few or tied, is in no family (Tarone 1990): it would only dilute those that
can. Differences at single scales and those over all scales are families apart, and so is the cost of a step, which is
of the machine and never the same twice: it decides about no other figure.

At matched loss a figure is read between two checkpoints. `bracket_low` and `bracket_high` are the same slope or
difference from whichever of the two checkpoints' values make it the least and the most.

The unit of a test is the run (trends) or the pair of runs (differences), also where scales are taken together: runs of
one seed at several scales, which share the order of the data and no weights, count as independent. Differences over all
scales are tested with the seed as the unit, too, which no p-value below 2 / 2**n_seeds can come of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
from jaxtyping import Float64

from outlier_moe.scale_sweep.seed_intervals import SeedIntervals, seed_intervals
from outlier_moe.scale_sweep.study import ALL_SCALES
from outlier_moe.statistics.comparable import false_discovery_rates_within
from outlier_moe.statistics.permutations import kendall
from outlier_moe.statistics.rank_tests import RankTest, paired
from outlier_moe.statistics.significance import LEVEL, verdict
from outlier_moe.tables.sweeps import COST, SweepComparison, SweepTrend
from outlier_moe.terminal.figures import plain


def trends(figures: pl.DataFrame, *, seed: int = 0, confidence_level: float = 0.95) -> pl.DataFrame:
    """How each figure changes with the number of parameters, for each optimiser.

    Args:
        figures: One row per (scale, optimizer, seed, moment, figure) with `n_parameters` and `value`; what is not
            finite counts as missing. Of values between two checkpoints also what `matched_figures` has more.
        seed: Decides the resamples.
        confidence_level: Of the intervals.

    Returns:
        One row per (figure, moment, optimizer): `slope` of the figure per doubling of the parameters with its
        intervals, Kendall's tau of all runs with its two-sided p-value by permutation, and their q-values. Families are
        the figures, and the cost of a step.
    """
    rows = []
    for (figure, moment, optimizer), group in _groups(_finite(figures), "figure", "moment", "optimizer"):
        scales = group["scale"].unique(maintain_order=True).to_list()
        sizes = dict(group.select("scale", "n_parameters").unique().rows())
        x = np.log2([sizes[scale] for scale in scales])
        # A seed counts where it has a value at every scale: it is resampled as a whole.
        values, *between = (
            group.pivot("scale", index="seed", values=column).sort("seed").drop_nulls().select(scales).to_numpy()
            for column in ("value", "value_low", "value_high")
        )
        found = {"figure": figure, "moment": moment, "optimizer": optimizer, "n_scales": len(scales)}
        found |= {"n_seeds": len(values)} | _where(group)
        rows.append(found | _trend(x, values, seed, confidence_level) | _slopes_between(x, values, *between))
    return _with_q(rows, SweepTrend, "slope", pl.lit("all scales"))


_Scales = Float64[np.ndarray, " scale"]
_Runs = Float64[np.ndarray, "seed scale"]


def _trend(x: _Scales, values: _Runs, seed: int, confidence_level: float) -> dict[str, Any]:
    if len(x) < 2:
        return _row(None, SeedIntervals(), RankTest(reason="one scale only"))
    if np.ptp(x) == 0:
        return _row(None, SeedIntervals(), RankTest(reason="all scales have as many parameters"))
    if len(values) == 0:
        return _row(None, SeedIntervals(), RankTest(reason="no seed has a value at every scale"))
    centred = x - x.mean()
    # Without each seed's mean, so that the slope of equal values is 0 to the last digit.
    slopes = (values - values.mean(axis=1, keepdims=True)) @ centred / (centred @ centred)
    slope, intervals = float(slopes.mean()), seed_intervals(slopes, seed=seed, confidence_level=confidence_level)
    found = kendall(np.tile(x, len(values)), values.ravel(), seed=seed)
    if found is None:
        return _row(slope, intervals, RankTest(reason="the figure is the same for all"))
    too_few = _too_few(f"{values.size} runs", found.smallest_p_value)
    test = RankTest(found.coefficient, p_value=found.p_value, smallest_p_value=found.smallest_p_value, reason=too_few)
    return _row(slope, intervals, test)


def _slopes_between(x: _Scales, values: _Runs, lowest: _Runs, highest: _Runs) -> dict[str, float | None]:
    """The least and the greatest slope that values between those of two checkpoints can give."""
    if len(values) == 0 or np.ptp(x) == 0:
        return {"bracket_low": None, "bracket_high": None}
    centred = x - x.mean()
    # Without each seed's mean, as the slope itself is taken.
    ends = [(of - values.mean(axis=1, keepdims=True)) * centred / (centred @ centred) for of in (lowest, highest)]
    low, high = (float(of(*ends).sum(axis=1).mean()) for of in (np.minimum, np.maximum))
    return {"bracket_low": low, "bracket_high": high}


def _where(figures: pl.DataFrame) -> dict[str, float | None]:
    """The loss that figures are read at, and the most steps between two checkpoints that one is read from."""
    return figures.select(pl.col("target_loss_nats").first(), pl.col("gap_steps").max()).row(0, named=True)


def _too_few(values: str, smallest: float | None) -> str | None:
    """Why a test has no q-value."""
    return None if smallest is None or smallest <= LEVEL else f"{values} cannot give p below {plain(smallest, 2)}"


PAIRS = {
    "figure": pl.String,
    "moment": pl.String,
    "scale": pl.String,
    "seed": pl.Int64,
    "optimizer": pl.String,
    "other": pl.String,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "target_loss_nats": pl.Float64,
    "gap_steps": pl.Float64,
}
"""A pair of runs of one scale and seed, as `comparisons` takes them."""


def pairs_of(figures: pl.DataFrame) -> pl.DataFrame:
    """The differences of each two optimisers' runs of one scale and seed, optimizer less other: `PAIRS`.

    Args:
        figures: As for `trends`. The optimizer of a pair is the one that comes first.
    """
    names = figures["optimizer"].unique(maintain_order=True).to_list()
    place = {name: index for index, name in enumerate(names)}
    keys, values = ["figure", "moment", "scale", "seed"], ["value", "value_low", "value_high", "gap_steps"]
    runs = _finite(figures).select(*keys, "optimizer", *values, "target_loss_nats")
    others = runs.select(*keys, pl.col("optimizer").alias("other"), pl.col(values).name.prefix("other_"))
    pairs = runs.join(others, on=keys, maintain_order="left_right").filter(
        pl.col("optimizer").replace_strict(place) < pl.col("other").replace_strict(place)
    )
    return pairs.select(
        *keys,
        *("optimizer", "other"),
        difference=pl.col("value") - pl.col("other_value"),
        difference_low=pl.col("value_low") - pl.col("other_value_high"),
        difference_high=pl.col("value_high") - pl.col("other_value_low"),
        target_loss_nats="target_loss_nats",
        gap_steps=pl.max_horizontal("gap_steps", "other_gap_steps"),
    ).cast(PAIRS)  # type: ignore[arg-type]


def comparisons(pairs: pl.DataFrame, *, seed: int = 0, confidence_level: float = 0.95) -> pl.DataFrame:
    """How each two optimisers differ, scale by scale and over all scales; a seed's runs share weights and data.

    Args:
        pairs: What `pairs_of` gave.
        seed: Decides the resamples.
        confidence_level: Of the intervals.

    Returns:
        One row per (figure, moment, scale, optimizer, other): the mean `difference` (optimizer minus other) with its
        intervals, the effect of the signed-rank test (the share of pairs above 0 less that below) with its two-sided
        p-value, the q-values of these, and where scales are pooled the p-value of the same test of whole seeds.
        Families are the figures at single scales and over all scales, and the cost of a step at single scales and over
        all.
    """
    rows = []
    for _, of_figure in _groups(pairs, "figure", "moment"):
        for key, of_pair in _groups(of_figure, "figure", "moment", "optimizer", "other"):
            found = dict(zip(("figure", "moment", "optimizer", "other"), key, strict=True))
            scales = _groups(of_pair, "scale")
            for (scale,), chosen in scales:
                rows.append(found | {"scale": scale} | _where(chosen) | _difference(chosen, seed, confidence_level))
            if len(scales) > 1:
                rows.append(found | {"scale": ALL_SCALES} | _difference(of_pair, seed, confidence_level))
    is_pooled = pl.col("scale") == ALL_SCALES
    scales = pl.when(is_pooled).then(pl.lit("all scales")).otherwise(pl.lit("one scale"))
    return _with_q(rows, SweepComparison, "difference", scales)


def _difference(pairs: pl.DataFrame, seed: int, confidence_level: float) -> dict[str, Any]:
    by_seed = pairs.pivot("scale", index="seed", values="difference").sort("seed").drop_nulls()
    values = by_seed.drop("seed").to_numpy().astype(np.float64)
    if len(values):
        # One set for the mean, its interval and the test: a seed that diverged at one scale would tilt the mean alone.
        pairs = pairs.filter(pl.col("seed").is_in(by_seed["seed"].implode()))
        differences = values.ravel()
        intervals = seed_intervals(values.mean(axis=1), seed=seed, confidence_level=confidence_level)
    else:
        differences = pairs["difference"].to_numpy().astype(np.float64)
        intervals = SeedIntervals(reason="no seed has a pair at every scale")
    test = paired(differences, seed=seed)
    of_seeds = paired(values.mean(axis=1), seed=seed).p_value if values.shape[1] > 1 else None
    n_differing = int(np.count_nonzero(differences))
    of_those, differ = ("pair", "differs") if n_differing == 1 else ("pairs", "differ")
    if n_differing < len(differences):
        of_those += f" that {differ}"
    test = test._replace(reason=test.reason or _too_few(f"{n_differing} {of_those}", test.smallest_p_value))
    row = _row(float(differences.mean()), intervals, test)
    row["difference"] = row.pop("slope")
    row |= pairs.select(bracket_low=pl.mean("difference_low"), bracket_high=pl.mean("difference_high")).row(
        0, named=True
    )
    return {"n_seeds": len(values), "n_pairs": len(differences), "p_value_of_seeds": of_seeds} | row


def _row(estimate: float | None, intervals: SeedIntervals, test: RankTest) -> dict[str, Any]:
    """The columns that both tables share, and the slope or difference."""
    found = intervals._asdict()
    reasons = [reason for reason in (found.pop("reason"), test.reason) if reason is not None]
    return {
        "slope": estimate,
        **found,
        "effect": test.effect,
        "p_value": test.p_value,
        "smallest_p_value": test.smallest_p_value,
        "reason": "; ".join(reasons) or None,
    }


def _finite(figures: pl.DataFrame) -> pl.DataFrame:
    """Finite figures with all columns; a figure read at a checkpoint has that value as both bounds."""
    lacking = [
        (pl.col("value") if name.startswith("value") else pl.lit(None, pl.Float64)).alias(name)
        for name in ("value_low", "value_high", "target_loss_nats", "gap_steps")
        if name not in figures.columns
    ]
    return figures.with_columns(lacking).filter(pl.col("value").is_finite())


def _groups(table: pl.DataFrame, *columns: str) -> Sequence[tuple[tuple[Any, ...], pl.DataFrame]]:
    return list(table.group_by(columns, maintain_order=True))


def _with_q(rows: list[dict[str, Any]], schema: type[dy.Schema], estimate: str, scales: pl.Expr) -> pl.DataFrame:
    """The table with the q-value of each test, the family that it accounts for, and the verdict by it.

    Args:
        rows: The table without them.
        schema: Of the table.
        estimate: The column whose sign a verdict tells.
        scales: What of the sizes each row is of.
    """
    columns = {name: of.dtype for name, of in schema.columns().items() if name not in ("q_value", "family", "verdict")}
    is_possible = pl.col("smallest_p_value") <= LEVEL
    kind = pl.when(figure=COST).then(pl.lit("cost")).otherwise(pl.lit("figures"))
    table = pl.DataFrame(rows, schema=columns).with_columns(
        family=pl.when(is_possible).then(pl.format("{}, {}", kind, scales))
    )
    q_value = false_discovery_rates_within(table["p_value"], table["family"])
    table = table.with_columns(q_value=q_value).with_columns(verdict(pl.col(estimate)))
    is_found = pl.col("verdict").is_in(["higher", "lower"])
    is_turned = is_found & (pl.col("bracket_low") <= 0) & (pl.col("bracket_high") >= 0)
    table = table.with_columns(verdict=pl.when(is_turned).then(pl.lit("either_sign")).otherwise("verdict"))
    return schema.validate(table.select(schema.column_names()), cast=True)
