"""How many parameters a model has, counted on one that is built without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


class StepMemory(NamedTuple):
    """The estimated memory of a training step, in bytes."""

    parameters: int
    """The weights."""
    gradients: int
    """A number for each of them."""
    optimizer_state: int
    """What the optimiser keeps."""
    activations: int
    """What the backward pass needs of the forward pass, and its own largest tensors."""
    batch_size: int
    """Samples that it is of."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer_state + self.activations

    def in_gib(self) -> dict[str, float]:
        """All of it and each part, in GiB, by the names of a table's columns."""
        parts = ("parameters", "gradients", "optimizer_state", "activations")
        return {
            "step_memory_gib": self.total / 2**30,
            **{f"{part}_gib": getattr(self, part) / 2**30 for part in parts},
        }


@dataclass(frozen=True)
class CountedModel:
    """A model of an experiment, as the table of parameter counts lists it."""

    experiment: str
    """The experiment that trains it."""
    model: str
    """Its name there."""
    kind: str
    """What it is: dense, moe or vit."""
    d_model: int
    """Features of the residual stream."""
    n_layers: int
    """Layers."""
    build: Callable[[], nn.Module]
    """Makes it; called where tensors take no memory."""
    active_share_of_experts: float = 1.0
    """The share of its experts that works on a token."""
    memory: StepMemory | None = None
    """What a training step with AdamW in float32 takes, where it is estimated; in bfloat16, which `auto` takes on
    accelerators that have it, activations take less."""


class ParameterCounts(NamedTuple):
    """How many parameters a model has."""

    total: int
    """All, those that are used twice once."""
    active: int
    """Those that work on one token; an embedding counts whole."""


def count_parameters(model: CountedModel) -> ParameterCounts:
    """Build a model on the meta device and count."""
    with torch.device("meta"):
        built = model.build()
    total = sum(p.numel() for p in built.parameters())
    in_experts = sum(
        p.numel() for name, module in built.named_modules() if name.endswith(".experts") for p in module.parameters()
    )
    # Experts are alike, so that the share of the idle ones is whole.
    return ParameterCounts(total, total - round(in_experts * (1 - model.active_share_of_experts)))
