"""Which layers of a resident model lie on which card, where one card is too small for all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate.utils import get_balanced_memory, infer_auto_device_map
from transformers import PreTrainedModel

from outlier_moe.architectures.structure import find_structure
from outlier_moe.architectures.transformers_private import undivided_class_names
from outlier_moe.errors import StudyError

DeviceMap = dict[str, int | str | torch.device]
"""The device of each part of a model, by the part's path."""


def balanced_placement(model: PreTrainedModel, room: Mapping[int, int]) -> DeviceMap:
    """About as many bytes of weights on each card; no decoder layer is divided.

    Args:
        model: The model, on the meta device.
        room: Bytes that each card has for weights, beside what runs there.

    Raises:
        StudyError: If they do not fit.
    """
    owners = (model, find_structure(model).backbone)
    undivided = sorted({name for owner in owners for name in undivided_class_names(owner)})
    model.tie_weights()
    balanced = get_balanced_memory(model, max_memory={**room}, no_split_module_classes=undivided)
    # The last card takes what the others leave; nothing may go to the host or the disk, which would read it anew for
    # every chunk.
    device_map = infer_auto_device_map(model, max_memory=balanced, no_split_module_classes=undivided)
    elsewhere = [path for path, device in device_map.items() if device in ("cpu", "disk")]
    if elsewhere:
        needed = sum(parameter.nbytes for parameter in model.parameters())
        raise StudyError(
            "The model does not fit onto the cards together.",
            key="record_outliers.mode",
            expected=f"room for {needed / 2**30:.1f} GiB of weights",
            got=", ".join(f"card {card}: {n_bytes / 2**30:.1f} GiB" for card, n_bytes in room.items()),
            remedy="Set it to streamed, or to auto, which finds out.",
        )
    return dict(device_map)
