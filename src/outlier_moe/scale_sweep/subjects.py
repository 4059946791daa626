"""The model and options of a run, in one form for classifiers and language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt32
from torch import Tensor, nn
from transformers import PreTrainedModel

from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.scale_sweep.measures import Row
from outlier_moe.tables.sweeps import GridEdge
from outlier_moe.training.options import OptimizerName, TrainingOptions
from outlier_moe.training.steps import BatchSource, LossFunction


@dataclass(frozen=True)
class SweptModel(ABC):
    """A model of a sweep as the configuration describes it."""

    optimizer: OptimizerName
    """Name of the optimiser."""
    sweep: Mapping[str, Any]
    """The section of the study, its preset filled in."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The name in the log."""


@dataclass(frozen=True)
class Subject:
    """The part of a run that differs between classifiers and language models."""

    model: PreTrainedModel
    """The model."""
    batches: BatchSource
    """The batch of each step."""
    loss: LossFunction
    """The loss that is minimised."""
    evaluate: Callable[[nn.Module, str, int], list[Row]]
    """Loss, and accuracy if there is one, on a part of the data, with so many inputs through the model at once."""
    n_evaluated: Mapping[str, int]
    """Number of inputs of each part that are evaluated."""
    held_out: str
    """The part that is not trained on by which learning rates are chosen and of which feature ranks are taken."""
    head: nn.Module
    """The module that reads the last features."""
    probe: Mapping[str, Tensor]
    """Inputs of the backbone whose activations are recorded, the same at every checkpoint."""
    positions: UInt32[np.ndarray, "sequence position"]
    """The token or patch at each of their positions."""
    decode: Callable[[list[int]], str]
    """The text of a token or patch."""
    identity: Mapping[str, Any]
    """A description of the data, as JSON."""
    unit: str
    """Name of the items of a batch."""


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser of a run."""

    name: OptimizerName
    """Name of the optimiser."""
    lr: float
    """Its peak learning rate."""
    adamw_lr: float
    """Peak learning rate of AdamW for the remaining parameters; otherwise the optimiser's own."""
    weight_decay: float
    """Weight decay of all parameters except norms and biases."""
    grid_edge: GridEdge | None = None
    """Why the rate is not known to be the best of a grid; None if it lies inside of it, or if there was none."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is trained and measured."""

    training: TrainingOptions
    """Options of the training loop."""
    optimizer: OptimizerOptions
    """Options of the optimiser."""
    recording: RecordOptions
    """Options of recording the probe."""
    batch_size: int
    """Inputs of a step and of evaluation, unless memory runs out."""
