"""Speed of the training loop beside transformers' Trainer: same model, same batches, same optimiser.

    python benchmarks/training.py [--steps 60] [--repeats 3] [--model simple|smollm|vit]

Both train in turns, in one process, from the same weights; the median of the repeats is taken. The losses of the last
step are shown too: the two do the same work if they are alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from outlier_moe.scale_sweep.classifiers import classification_loss
from outlier_moe.scale_sweep.study import Geometry, Scale
from outlier_moe.scale_sweep.vit import new_vit
from outlier_moe.training.loop import TrainingTask, train
from outlier_moe.training.optimizers import adamw
from outlier_moe.training.options import TrainingOptions
from outlier_moe.training.steps import Batch, LossFunction
from outlier_moe.upcycling.language_loss import language_loss
from outlier_moe.upcycling.pairs import model_config, new_model
from outlier_moe.upcycling.study import PAIRS, ModelSizes

LENGTH, LR = 128, 3e-4
IMAGES = Geometry(image_size=8, n_channels=1, patch_size=2)
WARM_UP = 5


class Speed(NamedTuple):
    """What a run came to."""

    units_per_s: float
    """After the first steps."""
    loss: float
    """Of the last step."""


class Examples(Dataset):
    """Random examples, the same for both."""

    def __init__(self, tensors: Batch, batch_size: int) -> None:
        self.tensors = tensors
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def batch(self, step: int) -> Batch:
        """The examples of a step."""
        step %= len(self) // self.batch_size
        chosen = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return {name: tensor[chosen] for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Contest:
    """What both sides train."""

    new: Callable[[], PreTrainedModel]
    """The model, always from the same weights."""
    loss: LossFunction
    """Our loss; the Trainer takes the model's own."""
    examples: Examples
    """What it is trained on."""
    unit: str
    """What is counted."""
    units_per_example: int
    """How many of them an example has."""

    @property
    def units_per_step(self) -> int:
        """How many a step has."""
        return self.examples.batch_size * self.units_per_example


def language_contest(pair: str, n_steps: int) -> Contest:
    """The demo's dense model on random tokens."""
    sizes = ModelSizes(1024, LENGTH, 4, 4, 512 if pair == "simple" else 344, LENGTH)
    tokens = torch.randint(0, 1024, (n_steps * 8, LENGTH), generator=torch.Generator().manual_seed(0))
    new = partial(new_model, model_config(pair, sizes))  # type: ignore[arg-type]
    return Contest(new, language_loss(), Examples({"input_ids": tokens, "labels": tokens}, 8), "tokens", LENGTH)


def image_contest(n_steps: int) -> Contest:
    """The laptop preset's largest classifier on random images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn((n_steps * 64, 1, 8, 8), generator=generator)
    labels = torch.randint(0, 10, (n_steps * 64,), generator=generator)
    new = partial(new_vit, Scale(96, 4, 6), IMAGES)
    return Contest(new, classification_loss, Examples({"pixel_values": pixels, "labels": labels}, 64), "images", 1)


def ours(contest: Contest, n_steps: int) -> Speed:
    """The loop of `outlier_moe.training`."""
    model = contest.new().train()
    asked: list[float] = []

    def batches(step: int) -> Batch:
        asked.append(time.monotonic())
        return contest.examples.batch(step)

    task = TrainingTask(model, [adamw(model, lr=LR)], batches, contest.loss)
    with TemporaryDirectory() as folder:
        # One step more, whose start is the end of the last one that counts: history and log are in the time.
        options = TrainingOptions(n_steps=n_steps + 1, checkpoint_every=10**9, device="cpu")
        history = train(task, options, Path(folder)).history
    seconds = asked[n_steps] - asked[WARM_UP]
    return Speed((n_steps - WARM_UP) * contest.units_per_step / seconds, history["loss"][n_steps - 1])


class Clock(TrainerCallback):
    """Takes the time from the end of the warm-up to the end of the last step."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Note the time."""
        if state.global_step == WARM_UP:
            self.started = time.monotonic()
        self.ended = time.monotonic()


class Sequential(Trainer):
    """The batches in their order, as the other side has them."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainers(contest: Contest, n_steps: int) -> Speed:
    """Transformers' Trainer."""
    clock = Clock()
    model = contest.new().train()
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=n_steps,
            per_device_train_batch_size=contest.examples.batch_size,
            learning_rate=LR,
            lr_scheduler_type="cosine",
            max_grad_norm=1.0,
            logging_steps=n_steps,
            logging_strategy="steps",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        optimizers = (adamw(model, lr=LR), None)
        trainer = Sequential(
            model=model, args=arguments, train_dataset=contest.examples, optimizers=optimizers, callbacks=[clock]
        )
        trainer.train()
    with torch.no_grad():
        loss = model(**contest.examples.batch(n_steps - 1)).loss.item()
    return Speed((n_steps - WARM_UP) * contest.units_per_step / (clock.ended - clock.started), loss)


def main() -> None:
    """Print both speeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", choices=[*PAIRS, "vit"], default="simple")
    arguments = parser.parse_args()
    is_vit = arguments.model == "vit"
    contest = image_contest(arguments.steps) if is_vit else language_contest(arguments.model, arguments.steps)
    found: dict[str, list[Speed]] = {"ours": [], "Trainer": []}
    for repeat in range(arguments.repeats):
        sides = [("ours", ours), ("Trainer", trainers)]
        for name, run in sides if repeat % 2 == 0 else reversed(sides):
            found[name].append(run(contest, arguments.steps))
            print(f"{name}: {found[name][-1].units_per_s:,.0f} {contest.unit}/s", flush=True)
    medians = {name: statistics.median(speed.units_per_s for speed in speeds) for name, speeds in found.items()}
    print(f"\n{arguments.model}, {torch.get_num_threads()} threads, median of {arguments.repeats}:")
    for name, speed in medians.items():
        print(f"  {name:8} {speed:10,.0f} {contest.unit}/s, last loss {found[name][-1].loss:.4f}")
    ratios = [mine.units_per_s / theirs.units_per_s for mine, theirs in zip(*found.values(), strict=True)]
    print(f"  ours / Trainer: {medians['ours'] / medians['Trainer']:.3f}")
    if len(ratios) > 1:
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  of runs that followed each other: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}")


if __name__ == "__main__":
    main()
