"""The speed of this machine, and the least time that a recording takes on it."""

from __future__ import annotations

import pytest
import torch

from outlier_moe.planning import speed
from outlier_moe.planning.speed import flops_per_second


def test_operations_are_counted_by_the_time_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 0.04, 0.05, 0.05, 0.07, 0.2])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setitem(speed.SIDE, "cpu", 8)
    flops_per_second.cache_clear()
    assert flops_per_second("float32", "cpu") == pytest.approx(torch.get_num_threads() * 2 * 8**3 / 0.02)
    flops_per_second.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_precision_has_a_speed(dtype: str) -> None:
    assert flops_per_second(dtype, "cpu") > 1e6
