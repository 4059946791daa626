"""Work that is done with fewer inputs at once if memory runs out: what is neither training nor `record`'s own loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from transformers import PreTrainedModel

from outlier_moe.machine.devices import free_cached_memory, is_out_of_memory

log = logging.getLogger(__name__)

Found = TypeVar("Found")


class FittingChunk:
    """How many inputs go through a model together: halved when memory runs out, for all that comes after.

    Args:
        model: The model.
        size: Inputs to begin with.
    """

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        self.model = model
        self.size = size

    def run(self, work: Callable[[int], Found]) -> Found:
        """What some work gives that takes so many inputs at once; it is begun anew with half of them if need be."""
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not is_out_of_memory(error) or self.size == 1:
                    raise
            # Outside of the handler, which holds on to what the failed work had computed.
            self.size //= 2
            log.warning("memory ran out: going on with %d inputs at once", self.size)
            free_cached_memory(self.model.device)
