"""How far a sweep's answers can be trusted: rates, matched losses, intervals of few seeds, tests, and times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import polars as pl

from outlier_moe.report.sentences import counted, listed
from outlier_moe.scale_sweep.figures import TARGET
from outlier_moe.scale_sweep.seed_intervals import coverage_said
from outlier_moe.scale_sweep.study import ALL_SCALES, chosen_sweep
from outlier_moe.tables.sweeps import COST
from outlier_moe.terminal.figures import plain

NEARLY_THE_START = 0.05
"""Share of the loss at the start below which what it has fallen by is next to nothing."""

Tables = Mapping[str, pl.DataFrame]


def caveats(name: str, tables: Tables, study: Mapping[str, Any]) -> list[str]:
    """What a reader must know of a sweep before its answers.

    Args:
        name: The sweep.
        tables: Its tables, those of `scale_sweep.summary.SweepTables` by name.
        study: The study; what is not known of it is not spoken of.
    """
    summary = tables["summary"]
    return [
        *_rates(name, summary, study),
        *_edges(summary),
        *_matched(summary),
        *_targets(tables),
        *_decay(tables["runs"]),
        *_clipped(tables["runs"]),
        *_intervals(tables),
        *_unit(tables),
        *_times(summary),
    ]


def _is_tuned(name: str, summary: pl.DataFrame, study: Mapping[str, Any]) -> bool:
    """Whether several learning rates were tried."""
    if name in study:
        section = chosen_sweep(study) if name == "scale_sweep" and "scale_sweep_preset" in study else study[name]
        if "multiples" in section:
            return len(section["multiples"]) > 1
        if name == "lm_scale_sweep":
            return False
    one_each = summary.group_by("optimizer").agg(pl.col("learning_rate").n_unique())["learning_rate"]
    return summary["grid_edge"].count() > 0 or any(n > 1 for n in one_each)


def _rates(name: str, summary: pl.DataFrame, study: Mapping[str, Any]) -> list[str]:
    """The learning rates, whether they were tried, and whose differ between scales."""
    said, differing = [], []
    for (optimizer,), rows in summary.group_by("optimizer", maintain_order=True):
        rates = {scale: plain(rate, 2) for scale, rate in rows.select("scale", "learning_rate").iter_rows()}
        if len(set(rates.values())) == 1:
            where = f" at {'all scales' if len(rates) > 1 else next(iter(rates))}"
            said.append(f"{optimizer} {next(iter(rates.values()))}{where}")
        else:
            differing.append(str(optimizer))
            said.append(f"{optimizer} {', '.join(f'{rate} at {scale}' for scale, rate in rates.items())}")
    listed_rates = "; ".join(said)
    if not _is_tuned(name, summary, study):
        return [
            f"Learning rates were fixed, and no others were tried: {listed_rates}. What looks like a difference between"
            " optimisers may be one between rates that suit them more or less."
        ]
    but = " unless the whole grid diverged" if "all diverged" in summary["grid_edge"] else ""
    text = f"Learning rates, each the best of its grid by the held-out loss{but}: {listed_rates}."
    if differing:
        text += (
            f" The rates of {listed(differing)} differ between scales, so that what goes with size there goes with the"
            " rate as well, outliers above all."
        )
    return [text]


def _edges(summary: pl.DataFrame) -> list[str]:
    """Whose learning rate is not known to be the best: it is at the edge of what was tried, or all of it diverged."""
    at_edge, diverged = [], []
    for row in summary.filter(pl.col("grid_edge").is_not_null()).iter_rows(named=True):
        where, rate = f"{row['optimizer']} at {row['scale']}", plain(row["learning_rate"], 2)
        if row["grid_edge"] == "all diverged":
            diverged.append(f"{where} ({rate})")
        else:
            at_edge.append(f"{where} (the {row['grid_edge']}, {rate})")
    said = []
    if at_edge:
        said.append(
            f"At the edge of the grid of learning rates, so that a better one may lie beyond: {', '.join(at_edge)}."
        )
    if diverged:
        said.append(f"Every rate of its grid diverged; the lowest was taken: {', '.join(diverged)}.")
    return said


def _matched(summary: pl.DataFrame) -> list[str]:
    """Where figures at matched loss are read, and from how far apart."""
    known = summary.drop_nulls("step_matched")
    if known.is_empty():
        return []
    steps, gaps = known["step_matched"].to_list(), known["gap_steps_matched"].to_list()
    said = f"The matched loss of a scale is reached after {_range(min(steps), max(steps))} steps (means of seeds)"
    if any(gaps):
        said += (
            f", and figures there lie on a line between two checkpoints, up to {plain(max(gaps), 3)} steps apart: what"
            " is found there has one sign whichever values between those of the two are taken"
        )
    missing = sum(summary.select(pl.col("n_seeds") - pl.col("n_diverged") - pl.col("n_matched")).to_series().to_list())
    if missing:
        said += f"; {missing} runs start at or below it, or never learn, and have none"
    return [
        f"{said}. Rates rise at first and then fall along half a cosine: there a slow run may stand at the end of that,"
        " at next to no rate, and a quick one in its midst."
    ]


def start_losses(tables: Tables) -> dict[str, float]:
    """The training loss at the start of each scale, the mean of its runs."""
    known = tables["figures"].filter(pl.col("value").is_not_null(), moment="start", figure=TARGET)
    means = known.group_by("scale", maintain_order=True).agg(pl.col("value").mean())
    return dict(means.iter_rows())


def _targets(tables: Tables) -> list[str]:
    """What the matched losses are beside those at the start, and where that is next to nothing."""
    start = start_losses(tables)
    targets = dict(tables["summary"].select("scale", "target_loss_nats").drop_nulls().unique("scale").iter_rows())
    known = [scale for scale in start if scale in targets]
    if not known:
        return []
    pairs = ", ".join(
        f"{plain(targets[scale], 4)} at {scale} (at the start {plain(start[scale], 4)})" for scale in known
    )
    n_classes = cast(int | None, tables["runs"]["n_classes"].drop_nulls().first())
    guess = "" if n_classes is None else f"; to guess one of {n_classes} classes costs {plain(math.log(n_classes), 4)}"
    text = f"Matched training loss in nats: {pairs}{guess}."
    if near := [scale for scale in known if _is_near(start[scale], targets[scale])]:
        text += (
            f" At {listed(near)} it lies within {100 * NEARLY_THE_START:g} % of that at the start: matched there means"
            " nearly guessing, and figures at matched loss are of models that have learnt next to nothing."
        )
    return [text + _near_pairs(tables, start)]


def _is_near(start: float, target: float) -> bool:
    return start - target <= NEARLY_THE_START * start


def _followed(trends: pl.DataFrame) -> str:
    """The losses at which optimisers are followed over the scales."""
    if "target_loss_nats" not in trends.columns:
        return ""
    followed = trends.filter(pl.col("n_scales") > 1).drop_nulls("target_loss_nats")
    known = followed.unique("optimizer", maintain_order=True)
    losses = ", ".join(
        f"{name} {plain(loss, 4)}" for name, loss in known.select("optimizer", "target_loss_nats").rows()
    )
    return f" how figures go with size is read at one loss at all scales ({losses});" if losses else ""


def _near_pairs(tables: Tables, start: Mapping[str, float]) -> str:
    """The same of the loss that two optimisers alone have reached, where they are compared at that."""
    comparisons = tables["comparisons"]
    if "target_loss_nats" not in comparisons.columns:
        return ""
    columns = ["scale", "optimizer", "other", "target_loss_nats"]
    rows = comparisons.filter(pl.col("scale") != ALL_SCALES, moment="matched").drop_nulls("target_loss_nats")
    near, n_pairs = [], 0
    for scale, optimizer, other, target in rows.select(columns).unique(columns[:3], maintain_order=True).iter_rows():
        n_pairs += 1
        if scale in start and _is_near(start[scale], target):
            near.append(f"{optimizer} and {other} at {scale} ({plain(target, 4)})")
    if not n_pairs:
        return ""
    own = (
        f" Pictures are at that;{_followed(tables['trends'])} two optimisers are compared at the loss that both reached"
    )
    if not near:
        return f"{own}, which is nearly the start for none of them."
    return f"{own}; that, too, is nearly the start for {', '.join(near)}."


def _intervals(tables: Tables) -> list[str]:
    """What intervals of so few seeds are worth."""
    comparisons, trends = tables["comparisons"], tables["trends"]
    of_intervals = [table.filter(pl.col("low").is_not_null()) for table in (comparisons, trends) if len(table)]
    numbers: Sequence[int] = sorted({n for table in of_intervals for n in table["n_seeds"].to_list() if n > 1})
    if not numbers:
        return []
    said = coverage_said(numbers[0])
    others = "What another rate would have given is in none of them: it moves all seeds together."
    return [f"{said[0].upper()}{said[1:]}. {others}"]


def _decay(runs: pl.DataFrame) -> list[str]:
    """What weight decay alone does to weights, which goes with the rate, and so with the optimiser."""
    if "decay_alone" not in runs.columns or not runs["weight_decay"].max():
        return []
    left = (
        runs.filter(pl.col("diverged_at").is_null())
        .group_by("optimizer", maintain_order=True)
        .agg(low=pl.col("decay_alone").min(), high=pl.col("decay_alone").max())
    )
    if left.is_empty():
        return []
    shares = "; ".join(f"{name} {_range(100 * low, 100 * high)} %" for name, low, high in left.rows())
    return [
        "Weight decay takes off rate times decay in each step, so that the same decay leaves of a weight, by itself:"
        f" {shares}. Differences in the rank of weights may be partly that."
    ]


def _range(low: float, high: float) -> str:
    first, last = plain(low, 3), plain(high, 3)
    return first if first == last else f"{first} to {last}"


def _clipped(runs: pl.DataFrame) -> list[str]:
    """How often gradients were cut, which slows SGD and leaves alone those who do not go by a gradient's size."""
    runs = runs.filter(pl.col("diverged_at").is_null())
    if "clipped_share" not in runs.columns or not runs["clipped_share"].count():
        return []
    known = runs.group_by("optimizer", maintain_order=True).agg(pl.col("clipped_share").mean())
    shares = ", ".join(f"{name} {plain(100 * share, 3)} %" for name, share in known.drop_nulls().rows())
    return [
        f"Gradients longer than the limit were cut to it, in these shares of the steps: {shares}. That makes a step of"
        " SGD smaller; AdamW and Muon hardly go by a gradient's length."
    ]


def _unit(tables: Tables) -> list[str]:
    """What the tests of all scales together count as one observation."""
    comparisons = tables["comparisons"]
    pooled = comparisons.filter(pl.col("n_seeds") > 0, scale=ALL_SCALES) if len(comparisons) else comparisons
    if pooled.is_empty():
        return []
    # Of one row, as two optimisers may share fewer scales and seeds than there are.
    n_pairs, n_seeds = max(pooled.select("n_pairs", "n_seeds").iter_rows())
    most_seeds = max(pooled["n_seeds"].to_list())
    return [
        f"Differences over all scales are tested by {n_pairs} pairs ({counted(n_seeds, 'seed')} at"
        f" {n_pairs // n_seeds} scales) and trends by single runs, all taken as independent; of whole seeds (p value of"
        f" seeds in the table of comparisons) no p-value below {plain(min(1.0, 2 / 2**most_seeds), 2)} can come."
    ]


def _times(summary: pl.DataFrame) -> list[str]:
    """What the time of a step is."""
    if COST not in summary.columns or not summary[COST].count():
        return []
    return [
        "The time of a step is of the machine that trained, and no property of an optimiser alone: on a CPU the"
        " processor time of all threads, on an accelerator the time by the clock."
    ]
