"""The tables of the sweeps over optimisers and scales: `scale_sweep/*.parquet` and `lm_scale_sweep/*.parquet`.

`scale` is the name of a model's sizes, `optimizer` and `seed` say which run of it a row is of. A `moment` is the start,
the end, or `matched`: where the run's training loss first is what all runs of its scale that did not diverge reached.
`summary.parquet` and `dynamics.parquet` have a column for each figure of `FIGURES`, null where a
sweep has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import dataframely as dy
import polars as pl

OUTLIER_FIGURES = ("peak", "kurtosis_of_feature_rms", "excess_kurtosis", "max_median_ratio")
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2", "up_proj", "down_proj")

FIGURES: Mapping[str, tuple[str, Sequence[str]]] = {
    "train_loss_nats": ("loss_nats", ("train",)),
    "validation_loss_nats": ("loss_nats", ("validation",)),
    "test_loss_nats": ("loss_nats", ("test",)),
    "train_accuracy": ("accuracy", ("train",)),
    "validation_accuracy": ("accuracy", ("validation",)),
    "test_accuracy": ("accuracy", ("test",)),
    "generalisation_gap_nats": ("generalisation_gap_nats", ("test",)),
    "generalisation_gap_accuracy": ("generalisation_gap_accuracy", ("test",)),
    "weight_effective_rank": ("weight_effective_rank_share", _MATRICES),
    "weight_stable_rank": ("weight_stable_rank", _MATRICES),
    "weight_participation_ratio": ("weight_participation_ratio", _MATRICES),
    "feature_effective_rank": ("feature_effective_rank_share", ("residual",)),
    "feature_stable_rank": ("feature_stable_rank", ("residual",)),
    "feature_participation_ratio": ("feature_participation_ratio", ("residual",)),
    "head_effective_rank": ("feature_effective_rank_share", ("head",)),
    "share_nonpositive": ("activation_share_nonpositive", ("ffn",)),
    "share_near_zero": ("activation_share_near_zero", ("ffn",)),
    "hoyer": ("activation_hoyer", ("ffn",)),
    **{figure: (figure, ("residual",)) for figure in OUTLIER_FIGURES},
    "n_systematic": ("n_systematic", ("default preset",)),
}
"""Each figure's measure, and the places that it is the mean over: matrices, and layers where the measure has them.
Effective ranks are shares of min(m, n), the others are as they are."""

COST = "step_time_s"
"""A figure of the end alone: the mean time of a step, without the first two."""

GridEdge = Literal["lowest", "highest", "all diverged"]
"""Why the rate that was taken of a grid is not known to be the best: it lies at an end of it, so that a better one may
lie beyond, or every rate diverged, and the lowest was taken."""


Moment = Literal["start", "matched", "end"]
MOMENTS: dict[Moment, str] = {"start": "at initialisation", "matched": "at matched loss", "end": "at the end"}
"""When runs are compared, in words. `matched`: when the run's training loss is what every other run of its scale
reached too."""
_VERDICTS = ["none", "too_few", "either_sign", "differs", "lower", "higher"]


class SweptRunFacts(dy.Schema):
    """`runs.parquet`: a row per run."""

    scale = dy.String(primary_key=True)
    optimizer = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    d_model = dy.Int64(min=1)
    n_parameters = dy.Int64(min=1)
    n_layers = dy.Int64(min=1)
    n_steps = dy.Int64(min=0)
    """Steps that were done."""
    diverged_at = dy.Int64(nullable=True, min=0)
    """Step, from 0, whose loss or gradient was not finite, or after which a loss on the data was not; null if none."""
    batch_size = dy.Int64(min=1)
    n_accumulate = dy.Int64(min=1)
    """Parts that a batch was cut into at the end: more than 1 where memory ran out."""
    learning_rate = dy.Float64(min=0)
    grid_edge = dy.String(nullable=True)
    """The end of the grid of learning rates that the best lay at; `all diverged` where there is no best, and the
    lowest was taken; null inside of the grid, or where none was tried."""
    weight_decay = dy.Float64(min=0)
    decay_alone = dy.Float64(nullable=True)
    """Share of a weight that weight decay alone would leave: the product over the steps of 1 - rate * decay. Null for a
    run that diverged."""
    clipped_share = dy.Float64(nullable=True, min=0, max=1)
    """Share of the steps whose gradient was longer than the limit and was cut to it; null without a limit, and for a
    run that diverged."""
    n_classes = dy.Int64(nullable=True, min=2)
    """Classes of the images; null for language models."""
    step_time_s = dy.Float64(min=0)
    """Mean time of a step without the first two, in seconds: on a CPU processor time of all threads, else by the
    clock."""
    time_training_s = dy.Float64(min=0)
    time_evaluation_s = dy.Float64(min=0)
    """Time of losses and accuracies at all checkpoints, in seconds."""
    time_recording_s = dy.Float64(min=0)
    """Time of recording outliers, in seconds."""
    time_measures_s = dy.Float64(min=0)
    """Time of ranks and sparsity, in seconds."""

    @dy.rule()
    def known_edge(cls) -> pl.Expr:
        return pl.col("grid_edge").is_null() | pl.col("grid_edge").is_in(get_args(GridEdge))


def _figure(name: str) -> dy.Float64:
    """A figure's column, held to the range that its definition gives."""
    if name == "generalisation_gap_nats":
        return dy.Float64(nullable=True)
    if name in ("generalisation_gap_accuracy", "excess_kurtosis"):
        return dy.Float64(nullable=True, min=_LEAST[name])
    is_share = name.endswith(("accuracy", "effective_rank")) or name.startswith("share_") or name == "hoyer"
    # Sums of shares are rounded.
    return dy.Float64(nullable=True, min=-ROUNDING, max=1 + ROUNDING if is_share else None)


ROUNDING = 1e-9
_LEAST = {"generalisation_gap_accuracy": -1.0, "excess_kurtosis": -3.0}
_AT_END = {name: _figure(name) for name in FIGURES}
_MATCHED = {f"{name}_matched": _figure(name) for name in FIGURES}


class _OfScale(dy.Schema):
    scale = dy.String(primary_key=True)
    optimizer = dy.String(primary_key=True)
    d_model = dy.Int64(min=1)
    n_parameters = dy.Int64(min=1)
    batch_size = dy.Int64(min=1)
    learning_rate = dy.Float64(min=0)
    grid_edge = dy.String(nullable=True)
    """Why the learning rate is not known to be the best, as in `runs.parquet`."""
    n_seeds = dy.Int64(min=1)
    n_diverged = dy.Int64(min=0)
    """Seeds whose run diverged; they are in no mean."""
    target_loss_nats = dy.Float64(nullable=True, min=0)
    """The matched training loss, in nats; null if every run of the scale diverged. `comparisons.parquet` compares two
    optimisers at a loss of their own."""
    start_loss_nats = dy.Float64(nullable=True, min=0)
    """Training loss before the first step, in nats, mean of the seeds: what guessing gives."""
    n_matched = dy.Int64(min=0)
    """Seeds with figures at the matched loss; a run that starts at or below that loss has none."""
    step_matched = dy.Float64(nullable=True, min=0)
    """Steps done at the matched loss, mean of the seeds."""
    gap_steps_matched = dy.Float64(nullable=True, min=0)
    """Steps between the two checkpoints that matched figures are interpolated from: the largest of the seeds."""


class _OfCheckpoint(dy.Schema):
    scale = dy.String(primary_key=True)
    d_model = dy.Int64(min=1)
    n_parameters = dy.Int64(min=1)
    optimizer = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    step = dy.Int64(primary_key=True, min=0)


_SUMMARY = "`summary.parquet`: a row per (scale, optimizer), the means of its seeds at the end and at matched loss."
_DYNAMICS = "`dynamics.parquet`: a row per (run, checkpoint), with all figures."
SweepSummary = type(
    "SweepSummary", (_OfScale,), {"__doc__": _SUMMARY, **_AT_END, COST: dy.Float64(nullable=True, min=0), **_MATCHED}
)
SweepCheckpoint = type("SweepCheckpoint", (_OfCheckpoint,), {"__doc__": _DYNAMICS, **_AT_END})


class SweptFigure(dy.Schema):
    """`figures.parquet`: a row per run, moment and figure."""

    scale = dy.String(primary_key=True)
    optimizer = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    moment = dy.String(primary_key=True)
    figure = dy.String(primary_key=True)
    d_model = dy.Int64(min=1)
    n_parameters = dy.Int64(min=1)
    is_diverged = dy.Bool()
    """Whether the run diverged: its end is the last checkpoint whose loss was a number, and it is in no mean, trend
    or comparison."""
    step = dy.Float64(nullable=True, min=0)
    """Step of the moment. At matched loss it lies between two checkpoints, and is null if that loss is never
    reached."""
    gap_steps = dy.Float64(nullable=True, min=0)
    """Steps between the two checkpoints that the value is interpolated from; 0 at a checkpoint."""
    value = dy.Float64(nullable=True)
    value_low = dy.Float64(nullable=True)
    value_high = dy.Float64(nullable=True)
    """The higher value of those two checkpoints; the value itself at a checkpoint."""
    reason = dy.String(nullable=True)
    """Why the run has no such moment."""

    @dy.rule()
    def known_moment(cls) -> pl.Expr:
        return pl.col("moment").is_in(list(MOMENTS))


class SweepTrend(dy.Schema):
    """`trends.parquet`: how a figure goes with the number of parameters, per optimiser."""

    figure = dy.String(primary_key=True)
    moment = dy.String(primary_key=True)
    optimizer = dy.String(primary_key=True)
    n_scales = dy.Int64(min=1)
    n_seeds = dy.Int64(min=0)
    """Seeds that have the figure at every scale."""
    target_loss_nats = dy.Float64(nullable=True, min=0)
    """At the moment `matched`, the training loss that all of the optimiser's runs at all scales reached, where the
    figures are read. Null at the end."""
    gap_steps = dy.Float64(nullable=True, min=0)
    """The most steps between two checkpoints that a figure there is read from; null where the target is."""
    slope = dy.Float64(nullable=True)
    """Change of the figure per doubling of the parameters."""
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    """Upper end of Student's interval, over the seeds' own slopes."""
    bootstrap_low = dy.Float64(nullable=True)
    bootstrap_high = dy.Float64(nullable=True)
    """Upper end of the BCa interval over resampled seeds; too narrow for few seeds (docs/sweeps.md)."""
    bracket_low = dy.Float64(nullable=True)
    bracket_high = dy.Float64(nullable=True)
    """The greatest value that the two checkpoints it is read between allow. At the end both brackets are the value."""
    effect = dy.Float64(nullable=True, min=-1, max=1)
    """Kendall's tau of the figure with the size, over all runs."""
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """Two-sided p-value by permutation of runs. Runs of one seed at several scales count as independent."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """Smallest p-value that so many runs with such ties could give."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """p-value that accounts for all tests of the family (Benjamini-Hochberg); null if the test could not give 0.05,
    however its values lie: it is then in no family."""
    family = dy.String(nullable=True)
    """Which tests the q-value accounts for: those with the same words here. The cost of a step is apart."""
    verdict = dy.Enum(_VERDICTS, nullable=True)
    """By the q-value. `higher`: the figure rises with size. `lower`: it falls. `either_sign`: it does one of both, by
    what lies between two checkpoints. `none`: neither is seen, and could have been. `too_few`: so few runs could not
    show it. Null without a test."""
    reason = dy.String(nullable=True)
    """Why there is no interval, no test, or no q-value."""


class SweepComparison(dy.Schema):
    """`comparisons.parquet`: how two optimisers differ.

    At the moment `matched` each two are compared at a loss of their own: what all optimisers reached is what the
    slowest did, which may be hardly better than guessing.

    The scale `all` pools the pairs of the seeds that have one at every scale; of all seeds, without an interval, if
    none has.
    """

    figure = dy.String(primary_key=True)
    moment = dy.String(primary_key=True)
    scale = dy.String(primary_key=True)
    optimizer = dy.String(primary_key=True)
    other = dy.String(primary_key=True)
    n_seeds = dy.Int64(min=0)
    """Seeds that the intervals are over; 0 if none has a pair at every scale."""
    n_pairs = dy.Int64(min=1)
    """Pairs of runs of one scale and seed, which share weights and data."""
    target_loss_nats = dy.Float64(nullable=True, min=0)
    """At the moment `matched`, the training loss at which the two are compared: what all runs of both at this scale
    that did not diverge reached. Null at the end, and over all scales, each of which has its own."""
    gap_steps = dy.Float64(nullable=True, min=0)
    """The most steps between two checkpoints that a figure there is read from; null where the target is."""
    difference = dy.Float64()
    """Figure of `optimizer` less that of `other`, mean over the pairs."""
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    """Upper end of Student's interval, over the seeds' own differences, each the mean over the scales."""
    bootstrap_low = dy.Float64(nullable=True)
    bootstrap_high = dy.Float64(nullable=True)
    """Upper end of the BCa interval over resampled seeds; too narrow for few seeds (docs/sweeps.md)."""
    bracket_low = dy.Float64(nullable=True)
    bracket_high = dy.Float64(nullable=True)
    """The greatest difference that the two checkpoints it is read between allow."""
    effect = dy.Float64(nullable=True, min=-1, max=1)
    """The share of the pairs above 0 less the share below."""
    p_value = dy.Float64(nullable=True, min=0, max=1)
    """Two-sided p-value of the signed-rank test over pairs. At the scale `all` the pairs of one seed at several scales
    count as independent."""
    p_value_of_seeds = dy.Float64(nullable=True, min=0, max=1)
    """p-value of the same test over each seed's mean over the scales, at the scale `all`; never below 2 /
    2**n_seeds."""
    smallest_p_value = dy.Float64(nullable=True, min=0, max=1)
    """Smallest p-value that so many different pairs could give."""
    q_value = dy.Float64(nullable=True, min=0, max=1)
    """p-value that accounts for all tests of the family (Benjamini-Hochberg); null if the test could not give 0.05,
    however its values lie: it is then in no family."""
    family = dy.String(nullable=True)
    """Which tests the q-value accounts for: those with the same words here. Single scales, all scales
    and, of each, the cost of a step are apart."""
    verdict = dy.Enum(_VERDICTS, nullable=True)
    """What the q-value says of the difference, as in `trends.parquet`."""
    reason = dy.String(nullable=True)
    """Why there is no interval, no test, or no q-value."""
