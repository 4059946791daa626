"""Weights as compressed-tensors writes them, in every format and granularity that the installed version has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from torch import Tensor

INT8_INPUT = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
FP8_INPUT = {**INT8_INPUT, "type": "float"}
BLOCK = [24, 40]
"""Neither divides the sizes of the tests' weights: the last blocks are partial."""
GRANULARITIES: Mapping[str, dict[str, Any]] = {
    "tensor": {"strategy": "tensor"},
    "channel": {"strategy": "channel"},
    "group": {"strategy": "group", "group_size": 16},
    "block": {"strategy": "block", "block_structure": BLOCK},
}


def _group(form: str, weights: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"format": form, "weights": {"symmetric": True, **weights}, **others}


def _ints(form: str, bits: int, granularity: str, *, symmetric: bool = True) -> dict[str, Any]:
    inputs = {"input_activations": INT8_INPUT} if form == "int-quantized" else {}
    return _group(
        form, {"num_bits": bits, "type": "int", "symmetric": symmetric, **GRANULARITIES[granularity]}, **inputs
    )


def _floats(form: str, granularity: str) -> dict[str, Any]:
    inputs = {"input_activations": FP8_INPUT} if form == "float-quantized" else {}
    return _group(form, {"num_bits": 8, "type": "float", **GRANULARITIES[granularity]}, **inputs)


def _microscaled(bits: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}


_NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_NVFP4_INPUT = {**_NVFP4, "dynamic": "local", "symmetric": True}

SCHEMES: Mapping[str, dict[str, Any]] = {
    **{f"pack int{bits} group": _ints("pack-quantized", bits, "group") for bits in range(2, 9)},
    **{
        f"pack int{bits} {granularity}{'' if symmetric else ' asymmetric'}": _ints(
            "pack-quantized", bits, granularity, symmetric=symmetric
        )
        for bits in (3, 4, 8)
        for granularity in ("tensor", "channel", "group")
        for symmetric in (True, False)
    },
    **{
        f"{form} int8 {granularity}{'' if symmetric else ' asymmetric'}": _ints(
            form, 8, granularity, symmetric=symmetric
        )
        for form in ("int-quantized", "naive-quantized")
        for granularity in GRANULARITIES
        for symmetric in (True, False)
    },
    "naive-quantized int4 group": _ints("naive-quantized", 4, "group"),
    **{
        f"{form} fp8 {granularity}": _floats(form, granularity)
        for form in ("float-quantized", "naive-quantized")
        for granularity in GRANULARITIES
    },
    "nvfp4": _group("nvfp4-pack-quantized", {**_NVFP4, "scale_dtype": "torch.float8_e4m3fn"}),
    "nvfp4 with inputs": _group("nvfp4-pack-quantized", _NVFP4, input_activations=_NVFP4_INPUT),
    "mxfp4": _group("mxfp4-pack-quantized", _microscaled(4)),
    "mxfp6": _group("mxfp6-pack-quantized", _microscaled(6)),
    "mxfp8": _group("mxfp8-quantized", _microscaled(8)),
}
"""What each scheme is, as a group of a configuration says it, without its targets."""


def scheme(name: str) -> QuantizationScheme:
    """A scheme as compressed-tensors has it."""
    return QuantizationScheme.model_validate({**SCHEMES[name], "targets": ["Linear"]})


def compress(weight: Tensor, how: QuantizationScheme) -> dict[str, Tensor]:
    """What compressed-tensors stores for the weight of a module, by the ends of names."""
    args = how.weights
    assert args is not None and how.format is not None
    whole = generate_gparam(weight.amin(), weight.amax()) if args.strategy == "tensor_group" else None
    scale, zero_point = calculate_qparams(*_extremes(weight.float(), args), args, whole)
    # MX scales are powers of two; those of other formats have the weight's dtype.
    parts = {"weight": weight, "weight_scale": scale.float() if args.scale_dtype else scale.to(weight.dtype)}
    if whole is not None:
        parts["weight_global_scale"] = whole.reshape(1)
    if not args.symmetric:
        parts["weight_zero_point"] = zero_point.to(args.zp_dtype or torch.int8)
    stored = BaseCompressor.get_value_from_registry(how.format).compress({**parts}, how)
    return {part: tensor for part, tensor in stored.items() if tensor is not None}


def decompress(parts: Mapping[str, Tensor], how: QuantizationScheme) -> Tensor:
    """What compressed-tensors itself makes of that."""
    assert how.format is not None
    weight = BaseCompressor.get_value_from_registry(how.format).decompress({**parts}, how)["weight"]
    assert weight is not None
    return weight


def _extremes(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """The least and the greatest value that each scale is for."""
    if args.strategy == "tensor":
        return weight.min().reshape(1), weight.max().reshape(1)
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        assert args.block_structure is not None
        blocks = [rows.split(args.block_structure[1], 1) for rows in weight.split(args.block_structure[0])]
        least, greatest = ([[getattr(block, of)() for block in row] for row in blocks] for of in ("min", "max"))
        return torch.tensor(least), torch.tensor(greatest)
    assert args.group_size is not None
    groups = weight.unflatten(1, (-1, args.group_size))
    return groups.amin(2), groups.amax(2)
