"""The heap keeps what is freed while it is told to, and no longer."""

import platform

import psutil
import pytest
import torch

from outlier_moe.machine.heap import freed_memory_kept

MB = 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told")
def test_freed_memory_is_kept_for_the_next_tensor_and_given_back_at_the_end() -> None:
    def held() -> int:
        memory = psutil.Process().memory_info()
        return memory.rss - memory.shared

    with freed_memory_kept():
        tensor = torch.ones(64 * MB, dtype=torch.uint8)
        used = held()
        del tensor
        assert held() > used - 16 * MB
    assert held() < used - 48 * MB
