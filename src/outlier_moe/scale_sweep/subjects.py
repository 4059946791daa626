"""What a run of a sweep trains, and how: classifiers and language models in one form."""

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
    """A model of a sweep as the study says it, whatever it is."""

    optimizer: OptimizerName
    """What trains it."""
    sweep: Mapping[str, Any]
    """The section of the study, its preset filled in."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What the log calls it."""


@dataclass(frozen=True)
class Subject:
    """What a run trains and asks: the part that classifiers and language models do not share."""

    model: PreTrainedModel
    """The model."""
    batches: BatchSource
    """The batch of each step."""
    loss: LossFunction
    """What is minimised."""
    evaluate: Callable[[nn.Module, str, int], list[Row]]
    """Loss, and accuracy if there is one, on a part of the data, with so many inputs through the model at once."""
    n_evaluated: Mapping[str, int]
    """How many inputs of each part that is of."""
    held_out: str
    """The part that is not trained on by which learning rates are chosen and of which feature ranks are taken."""
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

    name: OptimizerName
    """Which."""
    lr: float
    """Its peak learning rate."""
    adamw_lr: float
    """That of AdamW, where it trains what the optimiser does not take; else the optimiser's own."""
    weight_decay: float
    """Of all that is no norm and no bias."""
    grid_edge: GridEdge | None = None
    """Why the rate is not known to be the best of a grid; None if it lies inside of it, or if there was none."""


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
    """Of a step, and of whatever else goes through the model, unless memory runs out."""
