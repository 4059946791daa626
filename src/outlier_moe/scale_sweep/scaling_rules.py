"""How batch size and learning rate follow from a model's size, where the configuration leaves them to a rule."""

from __future__ import annotations

import math

LARGE_BATCHES = ((10_000_000, 4096), (50_000_000, 2048))
"""Parameters below which a batch has so many images."""
SMALLEST_BATCH = 1024
LEAST_STEPS_PER_EPOCH = 8
"""A batch never takes a larger share of the images: on a small data set an epoch would be a single step."""


def batch_size_for(n_parameters: int, *, n_train: int, wanted: int | str = "auto") -> int:
    """Number of images in a step.

    Args:
        n_parameters: Of the model.
        n_train: Images to train on.
        wanted: A number, or `auto` for the rule by size.
    """
    if isinstance(wanted, int):
        return min(wanted, n_train)
    by_size = next((size for below, size in LARGE_BATCHES if n_parameters < below), SMALLEST_BATCH)
    return max(1, min(by_size, n_train // LEAST_STEPS_PER_EPOCH))


def learning_rate_for(base: float | int, batch_size: int, *, reference: int) -> float:
    """The linear rule: the rate at the reference batch, times the batch's share of it."""
    return base * batch_size / reference


def n_steps_for(n_epochs: float | int | None, n_steps: int | None, *, batch_size: int, n_train: int) -> int:
    """Number of steps in a run: given, or from a number of epochs."""
    if n_steps is not None:
        return n_steps
    assert n_epochs is not None, "the study's check lets through one of the two"
    return max(1, math.ceil(n_epochs * n_train / batch_size))


def tuning_steps(n_steps: int, share: float) -> int:
    """Steps for which a learning rate is tried."""
    return max(1, round(share * n_steps))


def warmup_steps(fraction: float | int, n_steps: int) -> int:
    """Steps over which the learning rate rises."""
    return round(fraction * n_steps)


def saving_interval(n_steps: int, n_checkpoints: int) -> int:
    """Steps between two saved states of a run, of which there are as many as checkpoints."""
    return max(1, n_steps // n_checkpoints)


def measured_steps(n_steps: int, n_checkpoints: int) -> tuple[int, ...]:
    """The steps at which a run is measured: closer together early, where most changes.

    The k-th of n is after (k / n)**3 of the steps, and at least a step behind the one before. In a geometric row, the
    other way to be dense at the start, the last two would lie half a run apart.
    """
    found: list[int] = []
    for k in range(1, n_checkpoints + 1):
        found.append(max(round(n_steps * (k / n_checkpoints) ** 3), found[-1] + 1 if found else 1))
    return tuple(step for step in found if step <= n_steps)
