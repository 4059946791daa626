"""The types of a training step: its batch and its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

Batch = dict[str, Tensor]
"""Tensors whose first dimension is the batch's: the loop cuts them along it to accumulate gradients."""

BatchSource = Callable[[int], Batch]
"""The whole batch of a zero-based step. It must depend on the number alone: a resumed run asks for later steps only."""


class StepLoss(NamedTuple):
    """The result of a loss function on a batch, or on a part of one."""

    loss: Float[Tensor, ""]
    """What is minimised, a mean over the batch."""
    n_units: int
    """Number of tokens or images in the batch."""
    figures: dict[str, Float[Tensor, ""]]
    """Other means over the batch that go into the history, detached."""


LossFunction = Callable[[nn.Module, Batch], StepLoss]
