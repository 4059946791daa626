"""A checkpoint opened for either driver: one judgement of its files, its names and its quantisation."""

from __future__ import annotations

import torch

from outlier_moe.architectures.model_class import read_config
from outlier_moe.sources.computing_dtype import settle_dtype
from outlier_moe.streaming.layer_store import LayerStore
from outlier_moe.streaming.loading import Placement, Skeleton
from outlier_moe.streaming.shards import ShardSource


def open_store(
    source: ShardSource, *, dtype: torch.dtype | None, device: torch.device, trust_remote_code: bool = False
) -> LayerStore:
    """A model whose weights stay in the checkpoint until they are needed; it has `model` and `structure`.

    Args:
        source: The checkpoint, which is closed if it cannot be opened.
        dtype: The precision of the forward pass; None takes that of the checkpoint.
        device: Where the weights will be.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        StudyError: If the checkpoint leaves a weight to chance, has one that the model does not know, is quantised in
            a way that cannot be undone, or a file of it is broken.
    """
    try:
        config = read_config(source.directory, trust_remote_code=trust_remote_code)
        # No other file than those that the source counts.
        config.transformers_weights = None
        chosen = dtype or settle_dtype(config, source.values_by_dtype, of=str(source.directory))
        return LayerStore(Skeleton(config, Placement(chosen, device), trust_remote_code=trust_remote_code), source)
    except BaseException:
        source.close()
        raise
