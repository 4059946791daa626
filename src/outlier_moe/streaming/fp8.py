"""FP8 weights (and four-bit experts) with their scales, dequantised; scales go by the names of several tools.

A weight is its stored values times the scale of their block, row, group or tensor, also where a tool calls the scale
`weight_scale_inv`: it is the inverse of what the weight was multiplied by.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from outlier_moe.errors import StudyError
from outlier_moe.streaming.undoing import StoredWeight

SCALES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")
"""What the scale of a module's weight is called by DeepSeek, by vLLM, by DeepSeek V4 and by Mistral."""
# Of a weight that is no module's own, such as those of all experts in one tensor.
_SUFFIXES = ("_scale_inv", "_scale")
# Values of OCP's microscaling formats that have one scale.
_GROUP = 32
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_PAIRS = (torch.int8, torch.uint8, torch.float4_e2m1fn_x2)
# Scales that are powers of two, as those formats have them.
_POWERS = (torch.uint8, torch.float8_e8m0fnu)
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


class Fp8Undoing:
    """Undoes FP8, in blocks, by rows or by tensors.

    Args:
        said: The configuration's section.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._block = _block_size(said.get("weight_block_size"))

    def owner(self, name: str, names: Container[str]) -> str:
        """The weight that a scale is for, if it is one and the weight is there."""
        module, _, leaf = name.rpartition(".")
        if leaf in SCALES and f"{module}.weight" in names:
            return f"{module}.weight"
        return next((whole for end in _SUFFIXES if (whole := name.removesuffix(end)) != name and whole in names), name)

    def check(self, weight: StoredWeight) -> None:
        """Check that a weight has exactly one scale."""
        if len(weight.parts) != 2 or weight.name not in weight.parts:
            raise StudyError(
                "A weight has not one scale.",
                key=weight.name,
                expected="the values and one scale",
                got=", ".join(sorted(weight.parts)),
                remedy="Check that config.json and the shards are of the same model and save.",
            )

    def undo(self, weight: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight in float32."""
        values = parts[weight.name]
        scale = next(tensor for name, tensor in parts.items() if name != weight.name)
        try:
            if values.dtype in _PAIRS:
                values = _unpacked(values)
            elif values.dtype not in _EIGHT_BITS:
                raise ValueError(f"values of {str(values.dtype).removeprefix('torch.')} beside a scale")
            is_micro = values is not parts[weight.name] or scale.dtype in _POWERS
            return self._scaled(values.float(), _number(scale), is_micro=is_micro)
        except ValueError as error:
            raise StudyError(
                "A tensor of the checkpoint does not fit the model.",
                key=weight.name,
                expected="FP8 values and the scales of their blocks, rows or tensor",
                got=str(error),
                remedy="Check that config.json (weight_block_size) and the shards are of the same model and save.",
            ) from error

    def _scaled(self, values: Tensor, scale: Tensor, *, is_micro: bool) -> Tensor:
        """The values times their scales; only those of a microscaling format are in groups without being said to be."""
        shape, (rows, columns), before = values.shape, values.shape[-2:], tuple(values.shape[:-2])
        if scale.numel() == 1:
            return values * scale.reshape(())
        if self._block:
            height, width = self._block
            if tuple(scale.shape) == (*before, -(-rows // height), -(-columns // width)):
                return _in_blocks(values, scale, height, width)
        if tuple(scale.shape) in ((*before, rows), (*before, rows, 1)):
            return values * scale.reshape(*before, rows, 1)
        if before and tuple(scale.shape) in (before, (*before, 1), (*before, 1, 1)):
            return values * scale.reshape(*before, 1, 1)
        # The experts of some models are stored with their input first.
        if before and tuple(scale.shape) == (*before, 1, columns):
            return values * scale
        if is_micro and columns % _GROUP == 0 and tuple(scale.shape) == (*before, rows, columns // _GROUP):
            return _in_blocks(values, scale, 1, _GROUP)
        grid = f"a grid of {-(-rows // self._block[0])} x {-(-columns // self._block[1])}, or " if self._block else ""
        raise ValueError(
            f"FP8 scales of shape {list(scale.shape)} for a weight of shape {list(shape)}: expected {grid}one for each"
            " row, or one"
        )


def _block_size(said: Any) -> tuple[int, int] | None:
    """The rows and columns of a block; None if there are no blocks.

    Raises:
        StudyError: If what is said are no two sizes.
    """
    if said is None:
        return None
    if isinstance(said, list | tuple) and len(said) == 2 and all(type(size) is int and size > 0 for size in said):
        return said[0], said[1]
    raise StudyError(
        "The configuration says no size of the blocks of FP8 weights.",
        file="config.json",
        key="quantization_config.weight_block_size",
        expected="two whole numbers above 0, such as [128, 128], or none",
        got=said,
        remedy="Take the value of the model's published config.json.",
    )


def _in_blocks(values: Tensor, scale: Tensor, height: int, width: int) -> Tensor:
    """The values times the scale of their block; the last blocks may be partial."""
    rows, columns = values.shape[-2:]
    if rows % height or columns % width:
        spread = scale.repeat_interleave(height, -2).repeat_interleave(width, -1)
        return values * spread[..., :rows, :columns]
    blocks = values.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))
    return (blocks * scale[..., :, None, :, None]).reshape(values.shape)


def _number(scale: Tensor) -> Tensor:
    """A scale in float32; bytes are powers of two."""
    if scale.dtype == torch.uint8:
        return (scale.float() - 127).exp2()
    if not scale.dtype.is_floating_point:
        raise ValueError(f"scales of {str(scale.dtype).removeprefix('torch.')}")
    return scale.float()


def _unpacked(pairs: Tensor) -> Tensor:
    """The values of four bits in bytes, the first in the low bits."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=pairs.device)
    codes = pairs.contiguous().view(torch.uint8)
    return table[torch.stack([codes & 15, codes >> 4], dim=-1).long()].flatten(-2)
