"""The measurements at each checkpoint of a run, kept in files of that step."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
from torch import nn

from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.machine.fitting import FittingChunk
from outlier_moe.scale_sweep.measures import FeatureMeter, Row, clocked, weight_ranks
from outlier_moe.scale_sweep.subjects import RunOptions, Subject
from outlier_moe.tables.files import write_table
from outlier_moe.tables.whole_outputs import whole_file
from outlier_moe.training.devices import in_full_precision
from outlier_moe.training.loop import Visit
from outlier_moe.training.recordings import record_in_training

RECORDINGS = "recordings"
VISITS = "visits"
_SCHEMA = {
    "step": pl.Int64,
    "metric": pl.String,
    "place": pl.String,
    "layer": pl.Int64,
    "value": pl.Float64,
}


def visits_of(subject: Subject, structure: DecoderStructure, work: Path, options: RunOptions) -> Visit:
    """The function that is called at each checkpoint of a run.

    Args:
        subject: What is trained.
        structure: Its model's parts.
        work: The run's folder, in which a table and a recording of each checkpoint are kept.
        options: How the run is measured.
    """
    chunk = FittingChunk(subject.model, options.batch_size)

    def visit(n_done: int, model: nn.Module) -> None:
        rows: list[Row] = []
        with clocked(rows, "evaluation"):
            losses, features = evaluated(subject, structure, chunk)
        rows += with_gaps(losses)
        if not ended_badly(rows):
            with clocked(rows, "recording"):
                chunk.run(lambda size: _record(subject, structure, work / RECORDINGS / _name(n_done), options, size))
            with clocked(rows, "measures"):
                rows += weight_ranks(structure) + features.rows()
        table = pl.DataFrame([(n_done, *_finite(row)) for row in rows], schema=_SCHEMA, orient="row")
        with whole_file(work / VISITS / f"{_name(n_done)}.parquet") as partial:
            write_table(table, partial)

    return visit


def _name(n_done: int) -> str:
    return f"step_{n_done:08d}"


def evaluated(subject: Subject, structure: DecoderStructure, chunk: FittingChunk) -> tuple[list[Row], FeatureMeter]:
    """Losses and accuracies on all parts of the data, and the features of the held-out part, from the same forwards.

    All of it is computed in the weights' own precision: beside the rounding of autocast's bfloat16, which spreads over
    all directions, small singular values would count for nothing.
    """

    def held_out(size: int) -> tuple[list[Row], FeatureMeter]:
        # Anew each time: an attempt whose memory ran out has seen some of the inputs.
        n_inputs, d_model = subject.n_evaluated[subject.held_out], subject.model.config.hidden_size
        meter = FeatureMeter(structure, subject.head, n_inputs=n_inputs, d_model=d_model)
        with meter.watching():
            return subject.evaluate(subject.model, subject.held_out, size), meter

    with in_full_precision(subject.model):
        rows, meter = chunk.run(held_out)
        for part in subject.n_evaluated:
            if part != subject.held_out:
                rows = rows + chunk.run(lambda size, part=part: subject.evaluate(subject.model, part, size))
    return rows, meter


def _record(subject: Subject, structure: DecoderStructure, folder: Path, options: RunOptions, size: int) -> None:
    record_in_training(
        subject.model,
        structure,
        {name: of.to(subject.model.device) for name, of in subject.probe.items()},
        subject.positions,
        folder / "outliers",
        options.recording,
        decode=subject.decode,
        chunk=size,
    )


def with_gaps(rows: list[Row]) -> list[Row]:
    """Losses and accuracies with the generalisation gaps of both."""
    values = {row[:2]: row.value for row in rows}

    def gap(metric: str, sign: int) -> float | None:
        train, test = values.get((metric, "train")), values.get((metric, "test"))
        return None if train is None or test is None else sign * (test - train)

    gaps = [
        Row("generalisation_gap_nats", "test", None, gap("loss_nats", 1)),
        Row("generalisation_gap_accuracy", "test", None, gap("accuracy", -1)),
    ]
    return rows + gaps


def ended_badly(rows: list[Row]) -> bool:
    """Whether the loss on any part of the data is not finite."""
    return any(_finite(row).value is None for row in rows if row.metric == "loss_nats")


def _finite(row: Row) -> Row:
    """A row whose value is None if it is not finite, as the tables require."""
    return row if row.value is None or math.isfinite(row.value) else row._replace(value=None)
