"""Tensors of a checkpoint as transformers' conversion takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from outlier_moe.streaming.undoing import StoredWeight, Undoing


class CheckpointTensor:
    """A tensor of the checkpoint as transformers' conversion takes it, handed over once so that its use frees it."""

    def __init__(self, tensor: Tensor, stored_dtype: str) -> None:
        self._tensor: Tensor | None = tensor
        self._stored_dtype = stored_dtype
        self.nbytes = tensor.nbytes

    def get_dtype(self) -> str:
        """The dtype by the name it has in safetensors files."""
        return self._stored_dtype

    def __getitem__(self, whole: object) -> Tensor:
        """The tensor, which this object then forgets."""
        tensor, self._tensor = self._tensor, None
        assert tensor is not None
        return tensor


class UndoneTensor:
    """A weight that is stored in parts, made of them only when the conversion takes it.

    Args:
        weight: What it is.
        parts: What is stored, by full name.
        undoing: How.
        device: Where it is made.
    """

    def __init__(
        self, weight: StoredWeight, parts: Mapping[str, CheckpointTensor], undoing: Undoing, device: torch.device
    ) -> None:
        self._weight, self._parts, self._undoing, self._device = weight, dict(parts), undoing, device

    def get_dtype(self) -> str:
        """A dtype of floats, which it will have."""
        return "F32"

    def __getitem__(self, whole: object) -> Tensor:
        """The weight, whose parts this object then forgets."""
        parts = {name: tensor[...].to(self._device) for name, tensor in self._parts.items()}
        self._parts.clear()
        return self._undoing.undo(self._weight, parts)
