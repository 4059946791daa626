"""The training loop: any model, optimisers, batches and loss; a kill at any step costs the steps since a checkpoint.

A run's folder holds `training_history.jsonl` and `state/`, the last checkpoint with all that is needed to go on. On a
CPU a resumed run ends with the weights of an uninterrupted one, bit for bit, if it has as many threads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import polars as pl
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer

from outlier_moe.machine.fitting import within_memory
from outlier_moe.machine.progress import progress_bar
from outlier_moe.tables.whole_outputs import remove_whole
from outlier_moe.training.checkpoints import FOLDER, Resumed, load_checkpoint, save_checkpoint
from outlier_moe.training.devices import accelerator_for
from outlier_moe.training.history import TrainingHistory
from outlier_moe.training.options import TrainingOptions
from outlier_moe.training.schedule import lr_fraction, note_peaks, set_learning_rates
from outlier_moe.training.steps import Batch, BatchSource, LossFunction

log = logging.getLogger(__name__)

Visit = Callable[[int, nn.Module], None]
"""Called with the number of steps done and the model, in evaluation mode, before the first step and at each visit."""


@dataclass(frozen=True)
class TrainingTask:
    """A model with all that its training needs."""

    model: nn.Module
    """The model; it is moved to the run's device."""
    optimizers: Sequence[Optimizer]
    """Its optimisers, each with its peak learning rates."""
    batches: BatchSource
    """The batch of each step."""
    loss: LossFunction
    """The loss that is minimised."""
    visit: Visit | None = None
    """Called with the model along the way; after a kill perhaps twice for the same step."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that the run's figures depend on, as JSON: a checkpoint of another is refused."""
    label: str = "training"
    """The name in the progress bar and the log."""


class Trained(NamedTuple):
    """The result of a run."""

    history: pl.DataFrame
    """A row a step: `step`, `step_of_job` (since the start of the process that took it), `loss`, `learning_rate`,
    `gradient_norm`, `n_units`, `units_per_s`, `time_s` (by the clock), `processor_time_s` (of all threads of the
    process), `n_accumulate`, and the figures of the loss function. Steps that were taken before there was such a
    column have none."""
    n_steps: int
    """Steps that were done."""
    diverged_at: int | None
    """The zero-based step that ended the run, if one did: its loss or gradient was not finite, or its optimiser's
    linear algebra failed."""
    n_accumulate: int
    """Parts that a batch was cut into at the end."""


def train(task: TrainingTask, options: TrainingOptions, folder: Path) -> Trained:
    """Train a model, from the start or from where a killed run of the same folder was.

    The folder keeps the state after the last step too, so that a caller that is killed before it has used the model
    loses nothing; `forget_state` removes it.

    Args:
        task: What is trained.
        options: How.
        folder: The run's folder; made if need be, and taken up if it holds a checkpoint of this run.

    Raises:
        StudyError: If the folder holds a checkpoint of another run, or the device is not there.
    """
    optimizers = list(task.optimizers)
    note_peaks(optimizers)
    identity = {**task.identity, "options": _of_options(options), "optimizers": list(map(_of_optimizer, optimizers))}
    history = TrainingHistory(folder)
    with accelerator_for(options) as accelerator:
        torch.manual_seed(options.seed)
        model, *prepared = accelerator.prepare(task.model, *optimizers)
        resumed = load_checkpoint(folder, task.model, optimizers, identity=identity)
        at = resumed or Resumed(0, options.n_accumulate)
        history.cut(at.n_done)
        run = _Run(task, options, accelerator, model, prepared, at)
        if resumed is None:
            run.visit()
        else:
            log.info("%s: goes on after step %d", task.label, at.n_done)
        diverged_at = _all_steps(run, history, lambda at: save_checkpoint(folder, task.model, optimizers, at, identity))
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return Trained(history.finish(), run.n_done, diverged_at, run.n_accumulate)


def forget_state(folder: Path) -> None:
    """Remove what a run's folder keeps to go on from: when the run is done and its model kept elsewhere."""
    remove_whole(folder / FOLDER)


def _all_steps(run: _Run, history: TrainingHistory, save: Callable[[Resumed], None]) -> int | None:
    """Take the steps that are left; returns the one at which the run diverged, if it did."""
    options, label = run.options, run.task.label
    with progress_bar(label, options.n_steps, "steps", n_done=run.n_done, seconds_between=60.0) as advance:
        while run.n_done < options.n_steps:
            row = run.step()
            history.add(row)
            advance(1, f"loss {row['loss']:.4f}, {row['units_per_s']:,.0f} {options.unit}/s")
            if run.diverged is not None:
                log.warning("%s: diverged in step %d: %s", label, run.n_done + 1, run.diverged)
                return run.n_done
            run.n_done += 1
            if options.is_visit(run.n_done):
                run.visit()
            if options.is_checkpoint(run.n_done):
                save(Resumed(run.n_done, run.n_accumulate))
    return None


def _of_options(options: TrainingOptions) -> dict[str, Any]:
    """The options that decide a run's figures."""
    return {name: value for name, value in asdict(options).items() if name not in ("unit", "n_accumulate")}


def _of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's class and settings; those that JSON lacks are named."""
    groups = [
        {name: _plain(value) for name, value in group.items() if name not in ("params", "lr")}
        | {"n_parameters": sum(p.numel() for p in group["params"])}
        for group in optimizer.param_groups
    ]
    return {"class": type(optimizer).__name__, "groups": dict(enumerate(groups))}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


class _Run:
    """One run on its device."""

    def __init__(
        self,
        task: TrainingTask,
        options: TrainingOptions,
        accelerator: Accelerator,
        model: nn.Module,
        optimizers: Sequence[Any],
        at: Resumed,
    ) -> None:
        self.task = task
        self.options = options
        self.accelerator = accelerator
        self.model = model.train()
        self.optimizers = optimizers
        self.n_done, self.n_accumulate = at
        self.n_resumed = at.n_done
        self.diverged: str | None = None
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def visit(self) -> None:
        """Call the task's `visit`."""
        if self.task.visit is None:
            return
        self.model.eval()
        try:
            self.task.visit(self.n_done, self.task.model)
        finally:
            self.model.train()

    def step(self) -> dict[str, Any]:
        """Take a step, in more parts if memory runs out; returns its line of the history."""
        started, started_working = time.monotonic(), time.process_time()
        set_learning_rates(self.optimizers, lr_fraction(self.n_done, self.options))
        means = self._gradients(self.task.batches(self.n_done))
        # Infinity leaves gradients as they are and tells their norm.
        limit = self.options.max_gradient_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        n_units = means.pop("n_units")
        row = {name: float(value) for name, value in means.items()}
        self._update(row["loss"], norm)
        time_s, processor_time_s = time.monotonic() - started, time.process_time() - started_working
        return {
            "step": self.n_done,
            "step_of_job": self.n_done - self.n_resumed,
            **row,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": None if norm is None else float(norm),
            "n_units": n_units,
            "units_per_s": n_units / time_s,
            "time_s": time_s,
            "processor_time_s": processor_time_s,
            "n_accumulate": self.n_accumulate,
        }

    def _update(self, loss: float, norm: Any) -> None:
        """Take the optimisers' step, unless weights would become NaN or infinite."""
        if not (math.isfinite(loss) and (norm is None or math.isfinite(norm))):
            # Shampoo and SOAP fail on such gradients, and others would leave no finite weight.
            self.diverged = "the loss is not finite" if not math.isfinite(loss) else "the gradient is not finite"
            return
        try:
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            # Gradients that are finite, and whose squares are not.
            self.diverged = str(error)

    def _gradients(self, batch: Batch) -> dict[str, Any]:
        def take_less(error: Exception) -> None:
            if self.n_accumulate >= _size(batch):
                raise error
            self.n_accumulate = min(2 * self.n_accumulate, _size(batch))
            log.warning("memory ran out: going on with batches in %d parts", self.n_accumulate)
            self.model.zero_grad(set_to_none=True)

        return within_memory(lambda: self._accumulated(batch), take_less=take_less, device=self.accelerator.device)

    def _accumulated(self, batch: Batch) -> dict[str, Any]:
        """The gradients of a batch, part by part; returns the means of loss and figures."""
        parts = _parts(batch, self.n_accumulate)
        self.accelerator.gradient_accumulation_steps = len(parts)
        # A step whose memory ran out has left its count of parts behind.
        self.accelerator.step = 0
        means: dict[str, Any] = {"loss": 0.0, "n_units": 0}
        for part in parts:
            share = _size(part) / _size(batch)
            with self.accelerator.accumulate(self.model):
                found = self.task.loss(self.model, cast(Batch, send_to_device(part, self.accelerator.device)))
                # Accelerate divides by the number of parts, which may differ in size.
                self.accelerator.backward(found.loss if len(parts) == 1 else found.loss * (share * len(parts)))
            means["n_units"] += found.n_units
            for name, value in {"loss": found.loss.detach(), **found.figures}.items():
                means[name] = means.get(name, 0.0) + share * value
        return means


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _parts(batch: Batch, n_parts: int) -> list[Batch]:
    if n_parts == 1:
        return [batch]
    pieces = {name: tensor.chunk(n_parts) for name, tensor in batch.items()}
    return [dict(zip(pieces, values, strict=True)) for values in zip(*pieces.values(), strict=True)]
