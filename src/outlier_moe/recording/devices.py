"""The device that a model runs on, its memory, and the process's."""

from __future__ import annotations

import resource
import sys

import torch

from outlier_moe.errors import StudyError
from outlier_moe.recording.options import Device


def choose_device(wanted: Device) -> torch.device:
    """The device asked for; for `auto` cuda, else mps, else cpu.

    Raises:
        StudyError: If the device asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        raise StudyError(
            "The device asked for is not there.",
            key="record_outliers.device",
            expected="one of " + ", ".join(name for name, there in present.items() if there),
            got=wanted,
            remedy="Take one of those, or auto.",
        )
    return torch.device(wanted)


def free_by_card() -> list[int]:
    """The free memory of each CUDA device."""
    return [torch.cuda.mem_get_info(card)[0] for card in range(torch.cuda.device_count())]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the process ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def peak_memory_bytes(device: torch.device) -> dict[str, int]:
    """The most memory that the process, and the accelerator if there is one, has held so far."""
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = sum(torch.cuda.max_memory_allocated(card) for card in range(torch.cuda.device_count()))
    return peak
