"""Work that goes on with less at once when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from outlier_moe.machine.devices import free_cached_memory, is_out_of_memory

log = logging.getLogger(__name__)

Found = TypeVar("Found")


def within_memory(work: Callable[[], Found], *, take_less: Callable[[Exception], None], device: torch.device) -> Found:
    """The result of some work, started again with less each time memory runs out.

    Args:
        work: The work.
        take_less: Makes the next attempt smaller, or raises if there is no smaller one.
        device: Where memory is freed before it.
    """
    while True:
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            take_less(error)
        # Outside of the handler, which holds on to what the failed work had computed.
        free_cached_memory(device)


class FittingChunk:
    """How many inputs go through a model together: halved when memory runs out, also for all later inputs.

    Args:
        model: The model.
        size: Inputs to begin with.
    """

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        self.model = model
        self.size = size

    def run(self, work: Callable[[int], Found]) -> Found:
        """The result of some work on so many inputs at once; started again with half of them when memory runs out."""
        return within_memory(lambda: work(self.size), take_less=self._halve, device=self.model.device)

    def _halve(self, error: Exception) -> None:
        if self.size == 1:
            raise error
        self.size //= 2
        log.warning("memory ran out: going on with %d inputs at once", self.size)
