"""One run of a sweep: a model trained, and everything measured on it at every checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.optim import Optimizer

from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.machine.fitting import FittingChunk
from outlier_moe.machine.model_bars import model_bars_hidden
from outlier_moe.scale_sweep.subjects import RunOptions, Subject
from outlier_moe.scale_sweep.visits import RECORDINGS, VISITS, visits_of
from outlier_moe.tables.files import made_again, read_table, write_table
from outlier_moe.tables.whole_outputs import remove_whole, whole_directory
from outlier_moe.training.history import LINES, TABLE
from outlier_moe.training.loop import Trained, TrainingTask, Visit, train
from outlier_moe.training.model_identity import plain_config
from outlier_moe.training.named_optimizers import named_optimizers

ALL_MEASURES = "measures.parquet"
RUN = "run.json"
MODEL = "model"
N_SETTING_UP = 2
"""Steps at the start of a job whose cost does not count: everything is set up in them."""


def train_and_measure(subject: Subject, output: Path, options: RunOptions, *, label: str) -> None:
    """Train a model and leave what was measured along the way.

    A run that diverges ends there, and is a result: `run.json` says at which step.

    Args:
        subject: What is trained.
        output: The folder: `run.json`, the history, `measures.parquet`, a recording of each checkpoint, and the model.
        options: How.
        label: What the log calls the run.
    """
    # Beside the output, which Snakemake removes before it starts a killed job again.
    work = output.with_name(f".{output.name}.work")
    structure = find_structure(subject.model)
    visit = visits_of(subject, structure, work, options)
    trained = train(_task(subject, structure, options, label, visit), options.training, work)
    # What a job goes on from is left as it is until the output is whole, so that a kill in between costs no step.
    with whole_directory(output) as partial:
        _write_output(subject, trained, options, work, partial)
    remove_whole(work)


def last_loss(subject: Subject, work: Path, options: RunOptions, *, label: str) -> tuple[float, int | None]:
    """Train a model with no measures but the last: the loss to choose a learning rate by.

    Args:
        subject: What is trained.
        work: The folder of the run's state, which a run after a kill takes up.
        options: How.
        label: What the log calls the run.

    Returns:
        The loss on the held-out part, nan if the run diverged; and the step at which it did.
    """
    structure = find_structure(subject.model)
    trained = train(_task(subject, structure, options, label, None), options.training, work)
    if trained.diverged_at is not None:
        return math.nan, trained.diverged_at
    model = subject.model.eval()
    rows = FittingChunk(model, options.batch_size).run(lambda size: subject.evaluate(model, subject.held_out, size))
    loss = next(row.value for row in rows if row.metric == "loss_nats")
    loss = math.nan if loss is None else loss
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
            # Where a rate lies in its grid changes no step: a wider grid does not part a run from its state.
            "optimizer": asdict(replace(chosen, grid_edge=None)),
        },
        label=label,
    )


def _write_output(subject: Subject, trained: Trained, options: RunOptions, work: Path, output: Path) -> None:
    measures = [path for path in sorted((work / VISITS).glob("step_*")) if _step(path) <= trained.n_steps]
    table = pl.concat(read_table(path, remedy=made_again(output)) for path in measures)
    write_table(table, output / ALL_MEASURES)
    facts = _facts(subject, trained, options, ended_badly=_ended_badly(table))
    (output / RUN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for folder in sorted((work / RECORDINGS).glob("step_*")):
        if _step(folder) <= trained.n_steps:
            shutil.copytree(folder, output / RECORDINGS / folder.name)
    for name in (LINES, TABLE):
        shutil.copy2(work / name, output / name)
    with model_bars_hidden():
        subject.model.save_pretrained(output / MODEL)


def _step(path: Path) -> int:
    """The step of a checkpoint's file. A killed run may have left some of steps that it does not reach again."""
    return int(path.stem.removeprefix("step_"))


def _ended_badly(measures: pl.DataFrame) -> bool:
    """Whether a loss of the last checkpoint is not finite, of whichever part."""
    last = measures.filter(pl.col("step") == pl.col("step").max(), metric="loss_nats")
    return last["value"].null_count() > 0


def _facts(subject: Subject, trained: Trained, options: RunOptions, *, ended_badly: bool) -> dict[str, Any]:
    diverged_at = trained.n_steps if trained.diverged_at is None and ended_badly else trained.diverged_at
    return {
        "n_parameters": sum(p.numel() for p in subject.model.parameters()),
        "d_model": subject.model.config.hidden_size,
        "n_layers": subject.model.config.num_hidden_layers,
        "n_steps": trained.n_steps,
        "diverged_at": diverged_at,
        "batch_size": options.batch_size,
        "n_accumulate": trained.n_accumulate,
        "seed": options.training.seed,
        "max_gradient_norm": options.training.max_gradient_norm,
        **{f"optimizer_{name}": value for name, value in asdict(options.optimizer).items()},
        "time_training_s": trained.history["time_s"].sum(),
        "step_time_s": step_time(trained.history, subject.model.device),
        "data": subject.identity,
    }


def step_time(history: pl.DataFrame, device: torch.device) -> float:
    """The mean cost of a step in seconds, without a job's first few: on a CPU the processor time of all threads.

    The time by the clock would tell how busy a machine is with other work. An accelerator has no other; there it is
    the time by the clock. Not the median: SOAP and Shampoo do much of their work in one step of many.

    Args:
        history: Of the run: `Trained.history`. Steps without a processor time, which a job has taken that was killed
            before there was such a column, do not count; if no other has one, the time by the clock is taken. Where
            no `step_of_job` was noted either, a step counts as one of the run's first job.
        device: Of the model.
    """
    of_job = pl.int_range(pl.len())
    if "step_of_job" in history.columns:
        of_job = pl.coalesce("step_of_job", of_job)
    steps = history.filter(of_job >= N_SETTING_UP)
    if steps.is_empty():
        steps = history.tail(1)
    clock = "processor_time_s" if device.type == "cpu" else "time_s"
    if clock not in steps.columns or steps[clock].null_count() == len(steps):
        clock = "time_s"
    return steps.select(pl.col(clock).mean()).item()
