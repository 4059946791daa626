"""The one answer to what precision a model is computed in if nobody asks for another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedConfig

from outlier_moe.sources.checkpoint_dtype import main_dtype


def stated_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """The dtype in a configuration: of the whole model, otherwise of its text part."""
    for part in (config, config.get_text_config(decoder=True)):
        if part.dtype is not None:
            return part.dtype if isinstance(part.dtype, torch.dtype) else getattr(torch, part.dtype)
    return None


def settle_dtype(config: PreTrainedConfig, values: Callable[[], Mapping[str, int]], *, of: str) -> torch.dtype:
    """The dtype of a model, which is also written into its configuration.

    Args:
        config: The configuration.
        values: How many values the checkpoint has of each of the format's dtypes; asked if the configuration does not
            say.
        of: How to name the checkpoint in the log.
    """
    dtype = stated_dtype(config) or getattr(torch, main_dtype(values(), of=of))
    config.dtype = dtype
    return dtype
