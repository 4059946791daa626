"""How many bits of a checkpoint a weight takes that compressed-tensors stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Scales are bfloat16, or bytes in the formats that have groups of their own.
SCALE_BITS = 16
_BYTE_SCALES = ("nvfp4", "mxfp")


class PackedBits:
    """The bits of one value of each weight, by the scheme of its module.

    Args:
        said: The configuration's section.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        # Imported where it is needed: it takes half a second.
        from outlier_moe.architectures.compressed_schemes import CompressedSchemes

        self._schemes = CompressedSchemes(said)

    def bits(self, name: str, weight: Tensor, module: nn.Module) -> float | None:
        """The bits of one value with its share of the scale, or None where the weight is stored as it is.

        Args:
            name: The weight, as the model calls it.
            weight: The weight; one of three dimensions is those of all experts, which are stored one by one.
            module: What has it.
        """
        path, _, leaf = name.rpartition(".")
        names = (path,)
        if weight.ndim == 3:
            module = nn.Linear(1, 1, device="meta")
            names = tuple(f"{path}.0.{part}" for part in ("down_proj" if "down" in leaf else "up_proj", leaf))
        if self._schemes.ignores(names, module):
            return None
        scheme = self._schemes.scheme_of(names, module)
        if scheme is None or (weights := scheme.weights) is None:
            return None
        # Values of other widths lie in whole bytes, but where they are packed.
        form = self._schemes.format_of(scheme)
        width = weights.num_bits if "pack" in form else 8 * -(-weights.num_bits // 8)
        scale = 8 if form.startswith(_BYTE_SCALES) else SCALE_BITS
        if weights.group_size:
            return width + scale / weights.group_size
        block = weights.block_structure
        return width + scale / (block[0] * block[1] if block else weight.shape[-1])
