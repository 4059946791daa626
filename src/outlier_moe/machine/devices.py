"""The device that a model runs on, its memory, and the process's."""

from __future__ import annotations

import resource
import sys

import torch

from outlier_moe.definitions.record_options import Device, Dtype
from outlier_moe.errors import StudyError

# What torch says where it has no exception of its own for it: of the CPU, of mps, of CUDA's own libraries.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")


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
    return isinstance(error, RuntimeError) and any(said in str(error) for said in OUT_OF_MEMORY)


def free_cached_memory(device: torch.device) -> None:
    """Give back what torch keeps of a device's memory for the next tensors."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def peak_memory_bytes(device: torch.device) -> dict[str, int]:
    """The most memory that the process, and the accelerator if there is one, has held so far."""
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["cuda"] = sum(torch.cuda.max_memory_allocated(card) for card in range(torch.cuda.device_count()))
    return peak


def asked_dtype(dtype: Dtype) -> torch.dtype | None:
    """The precision that is asked for; None is that of the checkpoint."""
    return None if dtype == "checkpoint" else getattr(torch, dtype)
