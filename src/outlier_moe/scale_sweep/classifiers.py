"""Classifiers of the sweep: their learning rates tried, and each of them trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.scale_sweep.images import PARTS, ImageParts
from outlier_moe.scale_sweep.learning_rates import ChosenRate, chosen_rate, options_at, try_rates
from outlier_moe.scale_sweep.measures import Row
from outlier_moe.scale_sweep.runs import train_and_measure
from outlier_moe.scale_sweep.scaling_rules import batch_size_for, learning_rate_for, n_steps_for
from outlier_moe.scale_sweep.study import Geometry, Scale, geometry_of, scale_of
from outlier_moe.scale_sweep.subjects import RunOptions, Subject, SweptModel
from outlier_moe.scale_sweep.vit import n_vit_parameters, new_vit
from outlier_moe.training.options import OptimizerName
from outlier_moe.training.steps import Batch, StepLoss


@dataclass(frozen=True)
class Classifier(SweptModel):
    """A classifier, its images and its optimiser."""

    images: Path
    """The folder that `prepare_images` wrote."""
    scale: Scale
    """Its sizes."""
    geometry: Geometry
    """Size, channels and patches of an image."""

    @property
    def label(self) -> str:
        """The name in the log."""
        return f"ViT of d_model {self.scale.d_model}, {self.optimizer}"


def classifier_of(sweep: Mapping[str, Any], images: Path, *, scale: str, optimizer: OptimizerName) -> Classifier:
    """The classifier of a scale and an optimiser."""
    return Classifier(optimizer, sweep, images, scale_of(sweep, scale), geometry_of(sweep))


def try_learning_rates(of: Classifier, output: Path) -> None:
    """Train a classifier for a few steps at each learning rate and choose the best on the validation images.

    Args:
        of: The classifier.
        output: The table that `try_rates` writes.
    """
    try_rates(of, output, options_of=run_options, subject_of=_subject)


def train_classifier(
    of: Classifier, learning_rates: Path, output: Path, recording: RecordOptions, *, seed: int
) -> None:
    """Train a classifier at the chosen learning rate, measuring it at every checkpoint.

    Args:
        of: The classifier.
        learning_rates: The table that `try_learning_rates` wrote.
        output: The run's folder.
        recording: What is recorded of the probe.
        seed: Decides weights and the order of the images.
    """
    options = run_options(of, recording, chosen_rate(learning_rates), seed)
    train_and_measure(_subject(of, options), output, options, label=f"{of.label}, seed {seed}")


def run_options(of: Classifier, recording: RecordOptions, chosen: ChosenRate, seed: int) -> RunOptions:
    """Options for training a classifier at a multiple of the rule's learning rate."""
    sweep, rates = of.sweep, of.sweep["learning_rates"]
    n_train = ImageParts(of.images, of.geometry).size("train")
    batch_size = batch_size_for(n_vit_parameters(of.scale, of.geometry), n_train=n_train, wanted=sweep["batch_size"])
    return options_at(
        chosen,
        of,
        recording,
        given={
            name: learning_rate_for(base, batch_size, reference=rates["reference_batch_size"])
            for name, base in rates["base"].items()
        },
        n_steps=n_steps_for(sweep.get("n_epochs"), sweep.get("n_steps"), batch_size=batch_size, n_train=n_train),
        batch_size=batch_size,
        seed=seed,
        unit="images",
    )


def _subject(of: Classifier, options: RunOptions) -> Subject:
    images = ImageParts(of.images, of.geometry)
    seed, n_classes = options.training.seed, images.facts["n_classes"]
    model = new_vit(of.scale, of.geometry, seed=seed, n_classes=n_classes)
    shown = _shown(images, of.sweep["n_evaluated"])
    probe = images.first("validation", of.sweep["n_recorded"])["pixel_values"]
    per_side = of.geometry.patches_per_side
    positions = np.tile(np.arange(per_side**2 + 1, dtype=np.uint32), (len(probe), 1))

    def evaluate(model: nn.Module, part: str, chunk: int) -> list[Row]:
        return evaluated(model, shown[part], part, chunk=chunk)

    def place(tokens: list[int]) -> str:
        [number] = tokens
        return "class token" if number == 0 else f"row {(number - 1) // per_side}, column {(number - 1) % per_side}"

    return Subject(
        model=model,
        batches=images.shuffled(batch_size=options.batch_size, seed=seed),
        loss=classification_loss,
        evaluate=evaluate,
        n_evaluated={part: len(batch["labels"]) for part, batch in shown.items()},
        held_out="validation",
        head=model.get_submodule("classifier"),
        probe={"pixel_values": probe},
        positions=positions,
        decode=place,
        identity=images.facts,
        unit="images",
    )


def _shown(images: ImageParts, n_images: int) -> dict[str, Batch]:
    """The images of each part that losses are taken on: the same at every checkpoint, since losses are matched.

    At most as many training images as test images: more would not make the gap between the two more precise, and would
    take most of the time.
    """
    n_most = {"train": min(n_images, images.size("test"))}
    return {part: images.first(part, n_most.get(part, n_images)) for part in PARTS}


def classification_loss(model: nn.Module, batch: Batch) -> StepLoss:
    """Cross entropy, and the share of the images that are classified correctly."""
    logits = model(pixel_values=batch["pixel_values"]).logits.float()
    right = (logits.detach().argmax(dim=-1) == batch["labels"]).float().mean()
    return StepLoss(cross_entropy(logits, batch["labels"]), len(logits), {"accuracy": right})


def evaluated(model: nn.Module, batch: Batch, part: str, *, chunk: int) -> list[Row]:
    """Mean loss and accuracy on some images; no accuracy if the loss is not finite."""
    device = next(model.parameters()).device
    loss = right = 0.0
    n_images = len(batch["labels"])
    for first in range(0, n_images, chunk):
        piece = {name: of[first : first + chunk].to(device) for name, of in batch.items()}
        with torch.no_grad():
            found = classification_loss(model, piece)
        loss += found.loss.item() * found.n_units
        right += found.figures["accuracy"].item() * found.n_units
    accuracy = right / n_images if math.isfinite(loss) else None
    return [Row("loss_nats", part, None, loss / n_images), Row("accuracy", part, None, accuracy)]
