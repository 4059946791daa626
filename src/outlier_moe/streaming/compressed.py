"""Weights stored by compressed-tensors (as by llm-compressor), decompressed by its own decompressors."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor

from outlier_moe.architectures.compressed_schemes import UNPLAIN_FORMATS, CompressedSchemes
from outlier_moe.errors import StudyError
from outlier_moe.streaming.undoing import StoredWeight

COMPANIONS = ("weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx")
"""What lies beside the values of a weight."""
_PARTS = ("weight_packed", *COMPANIONS)
_VALUES = ("weight", "weight_packed")
# Older versions stored zero points where there are none, and an order of columns where it is the plain one.
_MAY_BE_TOO_MANY = frozenset({"weight_zero_point", "weight_g_idx", "weight_shape"})


class _Scheme(NamedTuple):
    scheme: QuantizationScheme
    format: str


class CompressedUndoing:
    """Undoes compressed-tensors, each module by the scheme of its own group.

    Args:
        schemes: The groups.
    """

    def __init__(self, schemes: CompressedSchemes) -> None:
        self._schemes = schemes
        self._chosen: dict[str, _Scheme] = {}

    def owner(self, name: str, names: Container[str]) -> str:
        """The weight of the module whose part a tensor is."""
        module, _, leaf = name.rpartition(".")
        return f"{module}.weight" if leaf in _PARTS else name

    def check(self, weight: StoredWeight) -> None:
        """Choose the scheme of a weight, and check that it has the parts that the scheme needs, and no other."""
        if self._schemes.ignores(weight.modules, weight.module):
            raise _unfit(weight, "is ignored by the configuration, but is stored with scales.", "a plain weight")
        scheme = self._schemes.scheme_of(weight.modules, weight.module)
        if scheme is None or scheme.weights is None:
            raise _unfit(weight, "is stored with scales, but no group of the configuration has it.", "a group's target")
        form = self._schemes.format_of(scheme)
        if form in UNPLAIN_FORMATS:
            raise _unfit(weight, f"is stored with scales that are not applied yet (format {form}).", "stored values")
        if form.endswith("pack-quantized") and scheme.weights.type == "float" and not scheme.weights.symmetric:
            raise _unfit(weight, f"has zero points, which compressed-tensors does not apply ({form}).", "symmetric")
        names = BaseCompressor.get_value_from_registry(form).compression_param_names(scheme)
        needed = {part for part in names if not part.startswith("input_")}
        if self._schemes.ordered and scheme.weights.strategy == "group":
            needed.add("weight_g_idx")
        has = {part.rpartition(".")[2] for part in weight.parts}
        if needed - has or has - needed - _MAY_BE_TOO_MANY:
            raise StudyError(
                f"A weight does not have the parts of its format ({form}).",
                key=weight.name,
                expected=", ".join(sorted(needed)),
                got=", ".join(sorted(has)),
                remedy="Check that config.json and the shards are of the same model and save.",
            )
        self._chosen[weight.name] = _Scheme(scheme, form)

    def undo(self, weight: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight, by compressed-tensors' own decompressor of its format."""
        scheme, form = self._chosen[weight.name]
        local = {name.rpartition(".")[2]: tensor for name, tensor in parts.items()}
        try:
            scheme = _with_order(scheme, local)
            _fit(local, scheme)
            whole = BaseCompressor.get_value_from_registry(form).decompress({**local}, scheme)["weight"]
            assert whole is not None
            return whole
        except (ValueError, RuntimeError, AssertionError, NotImplementedError, KeyError, IndexError) as error:
            raise StudyError(
                f"The parts of a weight do not fit its format ({form}).",
                key=weight.name,
                expected=f"{scheme.weights.num_bits} bits by {scheme.weights.strategy}",  # type: ignore[union-attr]
                got=str(error) or type(error).__name__,
                remedy="Check that config.json and the shards are of the same model and save.",
            ) from error


def _with_order(scheme: QuantizationScheme, local: dict[str, Tensor]) -> QuantizationScheme:
    """A scheme and its parts, with columns in an order that makes groups contiguous.

    Where columns are in groups by another order, each column gets its group's scale, and is a group of its own.
    """
    order = local.pop("weight_g_idx", None)
    weights = scheme.weights
    assert weights is not None
    if order is None or weights.group_size is None or bool((order < 0).all()):
        return scheme
    order = order.long()
    if torch.equal(order, torch.arange(len(order), device=order.device) // weights.group_size):
        return scheme
    if int(order.min()) < 0 or int(order.max()) >= local["weight_scale"].shape[-1]:
        raise ValueError(f"weight_g_idx names group {int(order.max())} of {local['weight_scale'].shape[-1]}")
    for part in ("weight_scale", "weight_zero_point"):
        if part in local:
            local[part] = local[part][:, order].contiguous()
    return scheme.model_copy(update={"weights": weights.model_copy(update={"group_size": 1})})


def _fit(local: dict[str, Tensor], scheme: QuantizationScheme) -> None:
    """Check shapes and dtypes, which the decompressors do not: what broadcasts is not refused there."""
    weights = scheme.weights
    assert weights is not None
    rows, columns = _shape(local, weights)
    scale = local["weight_scale"] = _shaped(local["weight_scale"], weights, rows, columns)
    if (zero_point := local.get("weight_zero_point")) is not None:
        if weights.symmetric:
            if bool(zero_point.float().any()):
                raise ValueError("weight_zero_point is not zero, though the scheme is symmetric")
            del local["weight_zero_point"]
        elif "weight_packed" in local and weights.strategy in ("group", "channel"):
            expected = (math.ceil(rows * weights.num_bits / 32), scale.shape[-1])
            if tuple(zero_point.shape) != expected:
                raise ValueError(f"weight_zero_point of shape {list(zero_point.shape)}, expected {list(expected)}")
        else:
            local["weight_zero_point"] = _shaped(zero_point, weights, rows, columns)
    if (whole := local.get("weight_global_scale")) is not None and whole.numel() != 1:
        raise ValueError(f"weight_global_scale of shape {list(whole.shape)}, expected one value")


def _shape(local: Mapping[str, Tensor], weights: QuantizationArgs) -> tuple[int, int]:
    """The rows and columns of the weight, from what is stored."""
    if (packed := local.get("weight_packed")) is None:
        values = local["weight"]
        if values.dtype != weights.pytorch_dtype() or values.ndim != 2:
            raise ValueError(f"weight is {values.dtype} of shape {list(values.shape)}, not {weights.pytorch_dtype()}")
        return values.shape[0], values.shape[1]
    if packed.ndim != 2:
        raise ValueError(f"weight_packed of shape {list(packed.shape)}")
    word = 8 * packed.dtype.itemsize
    if (stated := local.get("weight_shape")) is None:
        return packed.shape[0], packed.shape[1] * word // weights.num_bits
    rows, columns = (int(n) for n in stated)
    expected = (rows, math.ceil(columns * weights.num_bits / word))
    if tuple(packed.shape) != expected:
        raise ValueError(f"weight_packed of shape {list(packed.shape)}, expected {list(expected)}")
    return rows, columns


def _shaped(scale: Tensor, weights: QuantizationArgs, rows: int, columns: int) -> Tensor:
    """A scale in the shape that its granularity has."""
    match weights.strategy:
        case "tensor":
            expected: tuple[int, ...] = (1,)
        case "channel":
            expected = (rows, 1)
        case "group" | "tensor_group":
            assert weights.group_size is not None
            expected = (rows, math.ceil(columns / weights.group_size))
        case "block":
            assert weights.block_structure is not None
            height, width = weights.block_structure
            expected = (math.ceil(rows / height), math.ceil(columns / width))
        case other:
            raise ValueError(f"weights are not quantised by {other}")
    # One scale, and one for each row, are stored with and without a dimension of one.
    is_one = scale.numel() == math.prod(expected) == 1
    if tuple(scale.shape) != expected and not is_one and (tuple(scale.shape), expected) != ((rows,), (rows, 1)):
        raise ValueError(f"scales of shape {list(scale.shape)}, expected {list(expected)}")
    return scale.reshape(expected)


def _unfit(weight: StoredWeight, what: str, expected: str) -> StudyError:
    return StudyError(
        f"A weight {what}",
        key=weight.name,
        expected=expected,
        got=", ".join(sorted(weight.parts)[:4]),
        remedy="Check that config.json and the shards are of the same model and save.",
    )
