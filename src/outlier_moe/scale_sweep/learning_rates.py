"""Learning rates of a grid, each tried for a few steps; the best by the loss on held-out data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.scale_sweep.runs import last_loss
from outlier_moe.scale_sweep.scaling_rules import measured_steps, saving_interval, tuning_steps, warmup_steps
from outlier_moe.scale_sweep.study import rates_of
from outlier_moe.scale_sweep.subjects import OptimizerOptions, RunOptions, Subject, SweptModel
from outlier_moe.tables.files import read_table, write_table
from outlier_moe.tables.sweeps import GridEdge
from outlier_moe.tables.whole_outputs import remove_whole, whole_file
from outlier_moe.training.options import TrainingOptions

log = logging.getLogger(__name__)

AnyModel = TypeVar("AnyModel", bound=SweptModel)
UNMEASURED = {"n_checkpoints": 1, "n_recorded": 1}
"""Of a study's section while rates are tried: nothing is measured along the way, whatever the study says."""
N_STATES = 5
"""Of a trial, evenly spaced: those that it goes on from when it is killed."""


class ChosenRate(NamedTuple):
    """The learning rate that a run is trained at."""

    multiple: float | int
    """Multiple of the study's learning rates."""
    grid_edge: GridEdge | None = None
    """Why it is not known to be the best; None inside the grid, or without a grid."""


def options_at(
    chosen: ChosenRate,
    of: SweptModel,
    recording: RecordOptions,
    *,
    given: Mapping[str, float | int],
    n_steps: int,
    batch_size: int,
    seed: int,
    unit: str,
) -> RunOptions:
    """Options for training a model at a multiple of the study's learning rates.

    Args:
        chosen: The multiple.
        of: The model.
        recording: What is recorded of the probe.
        given: The rate of each optimiser that the multiple is of.
        n_steps: Steps of the run.
        batch_size: Of a step.
        seed: Decides weights and the order of the data.
        unit: What a batch is made of.
    """
    training, n_checkpoints = of.sweep["training"], of.sweep["n_checkpoints"]
    lr, adamw_lr = (chosen.multiple * given[name] for name in rates_of(of.optimizer))
    return RunOptions(
        training=TrainingOptions(
            n_steps=n_steps,
            n_warmup_steps=warmup_steps(training["warmup_fraction"], n_steps),
            max_gradient_norm=training["max_gradient_norm"],
            n_accumulate=training["n_accumulate"],
            checkpoint_every=saving_interval(n_steps, n_checkpoints),
            visit_at=measured_steps(n_steps, n_checkpoints),
            seed=seed,
            precision=training["precision"],
            device=training["device"],
            unit=unit,
        ),
        optimizer=OptimizerOptions(
            name=of.optimizer,
            lr=lr,
            adamw_lr=adamw_lr,
            weight_decay=training["weight_decay"],
            grid_edge=chosen.grid_edge,
        ),
        recording=recording,
        batch_size=batch_size,
    )


def try_rates(
    of: AnyModel,
    output: Path,
    *,
    options_of: Callable[[AnyModel, RecordOptions, ChosenRate, int], RunOptions],
    subject_of: Callable[[AnyModel, RunOptions], Subject],
) -> None:
    """Train for a few steps at each learning rate of the grid and choose the best on the held-out part.

    A rate at which the run diverges is never chosen; if all do, the lowest is, so that the sweep has its result.

    Args:
        of: The model, with the grid, and the share of a run's steps that each of its rates is tried for.
        output: The table to write: `learning_rate`, `multiple` (of what the study gives), `validation_loss_nats`,
            `diverged_at`, `n_steps`, `is_chosen`.
        options_of: How a whole run of it is trained and recorded, at one of them and with a seed.
        subject_of: What is trained.
    """
    of = replace(of, sweep={**of.sweep, **UNMEASURED})
    rows: list[dict[str, Any]] = []
    # What is done is not done again after a kill: rates that are through, and the steps to a trial's last state.
    work = output.with_name(f".{output.stem}.work")
    for multiple in sorted(of.sweep["multiples"]):
        whole = options_of(of, RecordOptions(), ChosenRate(multiple), of.sweep["tuning_seed"])
        options = _shortened(whole, of.sweep)
        rate = options.optimizer.lr
        loss, diverged_at = last_loss(
            subject_of(of, options), work / _folder_of(multiple), options, label=f"{of.label}, rate {rate:.3g}"
        )
        log.info("%s: at rate %.4g the loss on held-out data is %.5g", of.label, rate, loss)
        rows.append(
            {
                "learning_rate": rate,
                "multiple": multiple,
                "validation_loss_nats": loss if math.isfinite(loss) else None,
                "diverged_at": diverged_at,
                "n_steps": options.training.n_steps,
            }
        )
    table = pl.DataFrame(rows, schema_overrides={"diverged_at": pl.Int64, "validation_loss_nats": pl.Float64})
    with whole_file(output) as partial:
        write_table(table.with_columns(is_chosen=pl.int_range(pl.len()) == best_rate(table)), partial)
    remove_whole(work)


def _folder_of(multiple: float | int) -> str:
    """The name of a trial's folder: the shortest that tells a multiple from every other, the same for 1 and 1.0."""
    return str(multiple).removesuffix(".0")


def _shortened(options: RunOptions, sweep: Mapping[str, Any]) -> RunOptions:
    n_steps = tuning_steps(options.training.n_steps, sweep["tuning_share"])
    n_warmup = warmup_steps(sweep["training"]["warmup_fraction"], n_steps)
    training = replace(
        options.training,
        n_steps=n_steps,
        n_warmup_steps=n_warmup,
        checkpoint_every=saving_interval(n_steps, N_STATES),
        visit_at=(),
    )
    return replace(options, training=training)


def best_rate(tried: pl.DataFrame) -> int:
    """The row with the lowest held-out loss; the first if every rate diverged."""
    best = tried["validation_loss_nats"].arg_min()
    if best is None:
        log.warning("every learning rate of the grid diverged: going on with the lowest")
        return 0
    return best


def chosen_rate(learning_rates: Path) -> ChosenRate:
    """The chosen rate of a table that `try_rates` wrote."""
    tried = read_table(learning_rates)
    return ChosenRate(tried.filter("is_chosen")["multiple"].item(), grid_edge(tried))


def grid_edge(tried: pl.DataFrame) -> GridEdge | None:
    """Why the chosen rate is not known to be the best: it lies at an end of the grid, or all rates diverged.

    None inside of the grid, and where there was nothing to choose from. A rate below one that diverged is inside:
    nothing better lies beyond.
    """
    chosen = tried["is_chosen"].to_list()
    if len(chosen) == 1:
        return None
    if tried["validation_loss_nats"].null_count() == len(tried):
        return "all diverged"
    if not (chosen[0] or chosen[-1]):
        return None
    return "lowest" if chosen[0] else "highest"
