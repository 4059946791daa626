"""Accelerate's view of the device and the precision of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from outlier_moe.errors import StudyError
from outlier_moe.machine.devices import choose_device
from outlier_moe.training.options import Precision, TrainingOptions


@contextmanager
def accelerator_for(options: TrainingOptions, *, key: str = "training.device") -> Iterator[Accelerator]:
    """Accelerate on the device and in the precision of a run.

    Raises:
        StudyError: If the device is not there.
    """
    try:
        device = choose_device(options.device)
    except StudyError as error:
        error.key = key
        raise
    mixed = "bf16" if _takes_bfloat16(options.precision, device) else "no"
    try:
        # Accelerate prefers cuda to mps to the CPU too.
        yield Accelerator(
            cpu=device.type == "cpu", mixed_precision=mixed, gradient_accumulation_steps=options.n_accumulate
        )
    finally:
        # It keeps one state a process, and the next run of this one may want another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _takes_bfloat16(precision: Precision, device: torch.device) -> bool:
    if precision == "auto":
        # A CPU has it as well, but most are slower with it.
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """Have a model compute in the precision of its weights while the block runs, whatever Accelerate made of it."""
    # Accelerate puts its autocast around the model's forward; that of what is inside is the last to be entered.
    inside = [module for module in model.children() if "forward" not in vars(module)]
    without = torch.autocast(next(model.parameters()).device.type, enabled=False)
    try:
        for module in inside:
            module.forward = without(module.forward)
        yield
    finally:
        for module in inside:
            vars(module).pop("forward", None)
