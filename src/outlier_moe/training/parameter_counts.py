"""How many parameters a model has, counted on one that is built without memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn

Computed = Literal["float32", "bfloat16"]
"""In which a model computes while it trains; `bfloat16` is autocast, over weights in float32."""


class StepMemory(NamedTuple):
    """The estimated memory of a training step, in bytes."""

    parameters: int
    """Bytes of the weights."""
    gradients: int
    """Bytes of the gradients, one number for each weight."""
    optimizer_state: int
    """Bytes of the optimiser's state."""
    copies: int
    """Bytes of copies of the weights in the computing precision, if it differs."""
    activations_per_sample: int
    """Bytes of activations kept for the backward pass of a sample, with its own largest tensors."""
    batch_size: int
    """Samples of the step."""

    @property
    def activations(self) -> int:
        """Those of all samples, which go through the model together."""
        return self.activations_per_sample * self.batch_size

    @property
    def constant(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.parameters + self.gradients + self.optimizer_state + self.copies

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.constant + self.activations

    def n_parts(self, available: float) -> int | None:
        """The fewest parts of a batch, one after the other through the model, that memory is enough for.

        Args:
            available: The memory in bytes.

        Returns:
            What `n_accumulate` has to be; None where a sample alone takes more.
        """
        together = min(int((available - self.constant) // self.activations_per_sample), self.batch_size)
        return math.ceil(self.batch_size / together) if together > 0 else None

    def in_parts(self, n_parts: int) -> StepMemory:
        """The memory of the same step with its batch in parts: of the largest of them."""
        return self._replace(batch_size=math.ceil(self.batch_size / n_parts))

    def in_gib(self) -> dict[str, float]:
        """All of it and each part, in GiB, by the names of a table's columns."""
        parts = ("parameters", "gradients", "optimizer_state", "copies", "activations")
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
    memory: Mapping[Computed, StepMemory] = field(default_factory=dict)
    """What a training step with AdamW takes, where it is estimated. `precision: auto` is bfloat16 on accelerators that
    have it, else float32."""


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
