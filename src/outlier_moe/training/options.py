"""How a model is trained, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outlier_moe.definitions.record_options import Device

Precision = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["sgd", "adamw", "muon", "shampoo", "soap", "ademamix"]


@dataclass(frozen=True)
class TrainingOptions:
    """The choices behind one run, but for model, optimisers (with their learning rates), batches and loss."""

    n_steps: int
    """Optimiser steps."""
    checkpoint_every: int
    """Steps between checkpoints; the last step has one as well."""
    n_warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 to its peak."""
    final_lr_fraction: float = 0.0
    """What is left of the peak learning rate at the end of the cosine."""
    max_gradient_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None leaves them."""
    n_accumulate: int = 1
    """Parts that a batch is cut into, one after the other through the model. Out of memory doubles it."""
    visit_at: tuple[int, ...] | None = None
    """Numbers of steps done at which the model is visited, beside the start; None for the checkpoints."""
    seed: int = 0
    """Of torch's random numbers while training (dropout); batches have a seed of their own."""
    precision: Precision = "auto"
    """`bfloat16` is autocast; `auto` takes it on accelerators that have it."""
    device: Device = "auto"
    """Where; `auto` takes cuda, else mps, else cpu."""
    unit: str = "tokens"
    """What `StepLoss.n_units` counts."""

    def is_checkpoint(self, n_done: int) -> bool:
        """Whether there is a checkpoint after so many steps."""
        return n_done % self.checkpoint_every == 0 or n_done == self.n_steps

    def is_visit(self, n_done: int) -> bool:
        """Whether the model is visited after so many steps; before the first it always is."""
        return self.is_checkpoint(n_done) if self.visit_at is None else n_done in self.visit_at
