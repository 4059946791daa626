"""The measured speed of matrix products on this machine, from which minutes are estimated."""

from __future__ import annotations

import time
from functools import cache

import torch

from outlier_moe.planning.workload import DeviceType

# On a CPU small ones, of which some run undisturbed beside other work.
SIDE = {"cpu": 256, "mps": 2048, "cuda": 4096}
SECONDS = 0.1


@cache
def flops_per_second(dtype: str, device: DeviceType) -> float:
    """Operations a second of a matrix product on this machine, as it is now.

    Args:
        dtype: The precision of the factors.
        device: Where.
    """
    n_threads = torch.get_num_threads() if device == "cpu" else 1
    try:
        # Threads that wait for each other beside other work say nothing of the machine: one of them, times all.
        if device == "cpu":
            torch.set_num_threads(1)
        return n_threads * _fastest(dtype, device)
    finally:
        if device == "cpu":
            torch.set_num_threads(n_threads)


def _fastest(dtype: str, device: DeviceType) -> float:
    side = SIDE[device]
    left, right = (torch.ones(side, side, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    torch.matmul(left, right)
    started, best = time.perf_counter(), float("inf")
    while best == float("inf") or time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        # An accelerator answers before it is done; a number out of the product is there only then.
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - before)
    # The fastest of them: other work on the machine slows some of them down.
    return 2 * side**3 / max(best, 1e-9)
