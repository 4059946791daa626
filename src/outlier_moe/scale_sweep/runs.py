"""One run of a sweep: a model trained, and everything measured on it at every checkpoint."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import UInt32
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.recording.options import RecordOptions
from outlier_moe.scale_sweep.measures import ActivationMeter, HeadMeter, Row, clocked, weight_ranks
from outlier_moe.scale_sweep.study import GridEdge
from outlier_moe.terminal.model_bars import model_bars_hidden
from outlier_moe.training.loop import Trained, TrainingTask, Visit, forget_state, train
from outlier_moe.training.model_identity import plain_config
from outlier_moe.training.named_optimizers import Name, named_optimizers
from outlier_moe.training.options import TrainingOptions
from outlier_moe.training.recordings import record_in_training
from outlier_moe.training.steps import BatchSource, LossFunction
from outlier_moe.whole_outputs import whole_directory, whole_file

log = logging.getLogger(__name__)

MEASURES = "measures.parquet"
RECORDINGS = "recordings"
RUN = "run.json"
MODEL = "model"
VISITS = "visits"
_MEASURE_SCHEMA = {
    "step": pl.Int64,
    "metric": pl.String,
    "place": pl.String,
    "layer": pl.Int64,
    "value": pl.Float64,
}


@dataclass(frozen=True)
class Subject:
    """What a run trains and asks: the part that classifiers and language models do not share."""

    model: PreTrainedModel
    """The model."""
    batches: BatchSource
    """The batch of each step."""
    loss: LossFunction
    """What is minimised."""
    evaluate: Callable[[nn.Module], list[Row]]
    """Losses and accuracies on the parts of the data."""
    head: nn.Module
    """What reads the last features."""
    probe: Mapping[str, Tensor]
    """Inputs of the backbone whose activations are recorded, the same at every checkpoint."""
    positions: UInt32[np.ndarray, "sequence position"]
    """What stands at each of their positions."""
    decode: Callable[[list[int]], str]
    """What to call that."""
    identity: Mapping[str, Any]
    """What the data are, as JSON has it."""
    unit: str
    """What a batch is made of."""


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser of a run."""

    name: Name
    """Which."""
    lr: float
    """Its peak learning rate."""
    adamw_lr: float
    """That of AdamW, where it trains what the optimiser does not take."""
    weight_decay: float
    """Of all that is no norm and no bias."""
    grid_edge: GridEdge | None = None
    """The end of the grid that the rate lies at; None inside of it, or if there was none."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is trained and measured."""

    training: TrainingOptions
    """The loop's."""
    optimizer: OptimizerOptions
    """The optimiser's."""
    recording: RecordOptions
    """What is recorded of the probe."""
    batch_size: int
    """Of a step, and of whatever else goes through the model."""


def train_and_measure(subject: Subject, output: Path, options: RunOptions, *, label: str) -> None:
    """Train a model and leave what was measured along the way.

    A run whose loss is no longer finite ends there, and is a result: `run.json` says at which step.

    Args:
        subject: What is trained.
        output: The folder: `run.json`, the history, `measures.parquet`, a recording of each checkpoint, and the model.
        options: How.
        label: What the log calls the run.
    """
    # Beside the output, which Snakemake removes before it starts a killed job again.
    work = output.with_name(f".{output.name}.work")
    structure = find_structure(subject.model)
    visit = _visit(subject, structure, work, options)
    trained = train(_task(subject, structure, options, label, visit), options.training, work)
    _write_facts(subject, trained, options, work)
    _gather(work)
    with model_bars_hidden(), whole_directory(work / MODEL) as partial:
        subject.model.save_pretrained(partial)
    forget_state(work)
    shutil.rmtree(output, ignore_errors=True)
    work.rename(output)


def last_loss(subject: Subject, work: Path, options: RunOptions, *, label: str) -> tuple[float, int | None]:
    """Train a model with no measures but the last: the loss to choose a learning rate by.

    Args:
        subject: What is trained.
        work: The folder of the run's state, which a run after a kill takes up.
        options: How.
        label: What the log calls the run.

    Returns:
        The loss on the validation part, nan if the run diverged; and the step at which it did.
    """
    structure = find_structure(subject.model)
    trained = train(_task(subject, structure, options, label, None), options.training, work)
    if trained.diverged_at is not None:
        return math.nan, trained.diverged_at
    subject.model.eval()
    losses = [row.value for row in subject.evaluate(subject.model) if row[:2] == ("loss_nats", "validation")]
    loss = losses[0] if losses[0] is not None else math.nan
    return loss, None if math.isfinite(loss) else trained.n_steps


def _task(
    subject: Subject, structure: DecoderStructure, options: RunOptions, label: str, visit: Visit | None
) -> TrainingTask:
    chosen = options.optimizer
    optimizers: Sequence[Optimizer] = named_optimizers(
        subject.model,
        structure.layers,
        chosen.name,
        lr=chosen.lr,
        adamw_lr=chosen.adamw_lr,
        weight_decay=chosen.weight_decay,
    )
    return TrainingTask(
        model=subject.model,
        optimizers=optimizers,
        batches=subject.batches,
        loss=subject.loss,
        visit=visit,
        identity={
            "model": plain_config(subject.model),
            "data": subject.identity,
            "batch_size": options.batch_size,
            "optimizer": asdict(chosen),
        },
        label=label,
    )


def _visit(subject: Subject, structure: DecoderStructure, work: Path, options: RunOptions) -> Visit:
    def visit(n_done: int, model: nn.Module) -> None:
        rows: list[Row] = []
        head, activations = HeadMeter(subject.head), ActivationMeter(structure)
        with clocked(rows, "evaluation"), head.watching():
            rows += with_gaps(subject.evaluate(model))
        place = f"step_{n_done:08d}"
        train_loss = next(row.value for row in rows if row[:2] == ("loss_nats", "train"))
        if train_loss is not None:
            with clocked(rows, "recording"), activations.watching():
                record_in_training(
                    subject.model,
                    structure,
                    {name: of.to(subject.model.device) for name, of in subject.probe.items()},
                    subject.positions,
                    work / RECORDINGS / place / "outliers",
                    options.recording,
                    decode=subject.decode,
                    chunk=options.batch_size,
                )
            with clocked(rows, "measures"):
                rows += weight_ranks(structure) + activations.rows() + head.rows()
        table = pl.DataFrame([(n_done, *row) for row in rows], schema=_MEASURE_SCHEMA, orient="row")
        with whole_file(work / VISITS / f"{place}.parquet") as partial:
            table.write_parquet(partial)

    return visit


def with_gaps(rows: list[Row]) -> list[Row]:
    """Losses and accuracies, none where they are not finite, with the generalisation gaps of both."""
    rows = [row._replace(value=_finite(row.value)) for row in rows]
    values = {row[:2]: row.value for row in rows}

    def gap(metric: str, sign: int) -> float | None:
        train, test = values.get((metric, "train")), values.get((metric, "test"))
        return None if train is None or test is None else sign * (test - train)

    gaps = [
        Row("generalisation_gap_nats", "test", None, gap("loss_nats", 1)),
        Row("generalisation_gap_accuracy", "test", None, gap("accuracy", -1)),
    ]
    return rows + gaps


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _write_facts(subject: Subject, trained: Trained, options: RunOptions, work: Path) -> None:
    last = pl.read_parquet(sorted((work / VISITS).glob("step_*.parquet"))[-1])
    ended_badly = last.filter(metric="loss_nats", place="train")["value"].null_count() > 0
    diverged_at = trained.diverged_at
    if diverged_at is None and ended_badly:
        diverged_at = trained.n_steps
    # The first steps have everything to set up.
    times = trained.history["time_s"].slice(min(2, max(0, len(trained.history) - 1)))
    facts = {
        "n_parameters": sum(p.numel() for p in subject.model.parameters()),
        "d_model": subject.model.config.hidden_size,
        "n_layers": subject.model.config.num_hidden_layers,
        "n_steps": trained.n_steps,
        "diverged_at": diverged_at,
        "batch_size": options.batch_size,
        "n_accumulate": trained.n_accumulate,
        "seed": options.training.seed,
        **{f"optimizer_{name}": value for name, value in asdict(options.optimizer).items()},
        "time_training_s": trained.history["time_s"].sum(),
        "step_time_s": times.median(),
        "data": subject.identity,
    }
    (work / RUN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _gather(work: Path) -> None:
    visits = [pl.read_parquet(path) for path in sorted((work / VISITS).glob("step_*.parquet"))]
    with whole_file(work / MEASURES) as partial:
        pl.concat(visits).write_parquet(partial)
    shutil.rmtree(work / VISITS)
