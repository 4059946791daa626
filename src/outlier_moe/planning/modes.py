"""The mode of a run under `mode: auto`: resident or streamed."""

from __future__ import annotations

import logging
from typing import Literal, cast

import torch

from outlier_moe.machine.devices import free_by_card
from outlier_moe.machine.host_memory import available_bytes
from outlier_moe.planning.memory import DEVICE_CONTEXT_BYTES, resident_memory
from outlier_moe.planning.sizes import ModelSizes
from outlier_moe.planning.workload import DeviceType, Workload

log = logging.getLogger(__name__)

Mode = Literal["resident", "streamed"]

# The least that is left to the rest of the machine, and for what the plan does not foresee.
LEAST_MARGIN_BYTES = 2**28
MARGIN = 0.1


def fitting_mode(sizes: ModelSizes, workload: Workload, *, device: torch.device) -> Mode:
    """Resident if the planned memory fits into the free memory with a tenth to spare, otherwise streamed.

    Quantised checkpoints are streamed: they are computed in full precision, and a layer is dequantised as it comes in.

    Args:
        sizes: The model.
        workload: What is recorded.
        device: Where it runs.
    """
    if sizes.is_quantized:
        return "streamed"
    memory = resident_memory(sizes, workload, device=cast(DeviceType, device.type))
    # The libraries are loaded already.
    needed = memory.process.total - memory.process.libraries
    free = available_bytes()
    fits = _with_margin(needed) <= free
    if memory.device is not None:
        # Over several cards it is spread layer by layer.
        needed, free = memory.device.total - DEVICE_CONTEXT_BYTES, sum(free_by_card())
        fits = fits and _with_margin(needed) <= free
    log.info("resident it would take %.1f GiB, of %.1f GiB that are free", needed / 2**30, free / 2**30)
    return "resident" if fits else "streamed"


def _with_margin(n_bytes: int) -> float:
    return n_bytes + max(float(LEAST_MARGIN_BYTES), MARGIN * n_bytes)
