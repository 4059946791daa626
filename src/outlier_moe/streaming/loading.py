"""A model without its weights, and how tensors of a checkpoint become some of them, by transformers' own means.

Beside `architectures.transformers_private` the one module that touches what transformers does not promise to keep.
`tests/unit/streaming/test_loading.py` checks each name taken from there, so that an upgrade which moves one fails
there and not in a recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.auto import get_hf_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.loading_report import LoadStateDictInfo

from outlier_moe.architectures.model_class import AutoClass, model_class_for
from outlier_moe.architectures.transformers_private import class_takes_config
from outlier_moe.errors import StudyError
from outlier_moe.terminal.model_bars import model_bars_hidden

DEQUANTISED = ("fp8", "mxfp4", "compressed-tensors")


class BlockFp8Dequantize(Fp8Dequantize):
    """Dequantisation of FP8 weights whose last blocks may be partial.

    transformers takes `rows // scale_rows` for the height of a block. Where the last block is partial that is an error
    (576 rows, 5 rows of scales) or silently wrong (192 rows, 2 rows of scales make blocks of 96).
    """

    def _dequantize_one(self, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        # The experts of a checkpoint with FP8 matrices may be packed FP4, in blocks of their own.
        if not block or quantized.dtype != torch.float8_e4m3fn or scales.numel() == 1:
            return super()._dequantize_one(quantized, scales, output_dtype)
        rows, columns = quantized.shape[-2:]
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if tuple(scales.shape[-2:]) != grid:
            raise ValueError(
                f"FP8 scales of shape {list(scales.shape)} for a weight of shape {list(quantized.shape)} in blocks of"
                f" {block[0]} x {block[1]}: expected a grid of {grid[0]} x {grid[1]}"
            )
        if rows % block[0] == 0 and columns % block[1] == 0:
            return super()._dequantize_one(quantized, scales, output_dtype)
        padding = (0, grid[1] * block[1] - columns, 0, grid[0] * block[0] - rows)
        whole = nn.functional.pad(quantized.float(), padding)
        return super()._dequantize_one(whole, scales, output_dtype)[..., :rows, :columns].contiguous()


def read_dequantized(config: PreTrainedConfig) -> None:
    """Have a configuration say that quantised weights are to be dequantised as they are read, on every device.

    Raises:
        StudyError: If they are quantised in a way that transformers cannot undo.
    """
    for part in (config, config.get_text_config(decoder=True)):
        quantization = getattr(part, "quantization_config", None)
        if isinstance(quantization, dict):
            if quantization.get("quant_method") not in DEQUANTISED:
                raise StudyError(
                    "The checkpoint is quantised in a way that cannot be read into plain weights.",
                    key="quantization_config.quant_method",
                    expected=", ".join(DEQUANTISED),
                    got=quantization.get("quant_method"),
                    remedy="Take a checkpoint of the model that is not quantised, or quantised in one of these ways.",
                )
            quantization["dequantize"] = True


class Placement(NamedTuple):
    """How and where a model is to hold its weights."""

    dtype: torch.dtype
    """Of all weights but those that the family keeps in float32."""
    device: torch.device
    """Where they are while a layer runs."""


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


@dataclass(frozen=True)
class Discrepancies:
    """What a checkpoint lacks and what it has too much, but for what the family declares to be of no account."""

    missing: tuple[str, ...]
    """Weights of the model that nothing in the checkpoint becomes."""
    unexpected: tuple[str, ...]
    """Names that would have been weights of the model."""


class Skeleton:
    """A model whose weights are on the meta device but whose computed tables (rotary frequencies) are real.

    Args:
        config: The model's configuration; `read_dequantized` must have seen it.
        placement: How and where the weights will be.
        trust_remote_code: Whether the checkpoint's own code may run.
        auto_class: What makes the model of the configuration, if not what recording runs.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        placement: Placement,
        *,
        trust_remote_code: bool = False,
        auto_class: AutoClass | None = None,
    ) -> None:
        self.config = config
        self.placement = placement
        device_map = {"": placement.device}
        quantizer, config, _ = get_hf_quantizer(config, None, device_map, True, {})
        dtype = placement.dtype if quantizer is None else _with_block_scales(quantizer).update_dtype(placement.dtype)
        auto_class = auto_class or model_class_for(config, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            self.model = cast(
                PreTrainedModel,
                auto_class.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code),
            )
            if quantizer is not None:
                quantizer.preprocess_model(model=self.model, dtype=dtype, device_map=device_map, use_kernels=False)
        self._compute_tables()
        self.model.eval()
        self.weights: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        """Every weight that a checkpoint holds, as it is on the meta device."""
        self._conversions = get_model_conversion_mapping(self.model, None, quantizer)
        self._load_config = LoadStateDictConfig(
            device_map=device_map,
            dtype=dtype,
            dtype_plan=self.model._get_dtype_plan(dtype),
            hf_quantizer=quantizer,
            weight_mapping=cast("list[WeightConverter | WeightRenaming]", self._conversions),
        )

    @property
    def quantized(self) -> bool:
        """Whether the checkpoint is."""
        return self._load_config.hf_quantizer is not None

    def _compute_tables(self) -> None:
        none_missing = cast("list[str]", set())
        self.model._move_missing_keys_from_meta_to_device(none_missing, {"": self.placement.device}, None, None)
        # Fills the tables; on weights, which are on the meta device, it does nothing.
        self.model._initialize_missing_keys(False)

    def targets(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The weights that tensors of the checkpoint become; several where one is split.

        Names that belong nowhere have what they are renamed to, which is no weight.
        """
        renamings = [entry for entry in self._conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._conversions if isinstance(entry, WeightConverter)]
        converter_of = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = self.model.base_model_prefix
        found: dict[str, tuple[str, ...]] = {}
        # The order in which transformers goes through them: some renamings hold only once another was seen.
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self.weights)
            if target not in self.weights and name in self.weights:
                target, pattern = rename_source_key(name, [], [], prefix, self.weights)
            first, *others = converter_of[pattern].target_patterns if pattern is not None else [target]
            found[name] = (target, *(target.replace(first, other) for other in others))
        return found

    def discrepancies(self, targets: Mapping[str, Sequence[str]]) -> Discrepancies:
        """Compare what the tensors of a checkpoint become with the weights of the model."""
        reached = {target for group in targets.values() for target in group}
        tied = self.model.all_tied_weights_keys
        missing = {name for name in self.weights.keys() - reached if not _same_weight(name, tied) & reached}
        info = LoadStateDictInfo(
            missing_keys=missing,
            unexpected_keys=reached - self.weights.keys(),
            mismatched_keys=set(),
            error_msgs=[],
            conversion_errors={},
            skipped_pp_keys=set(),
        )
        self.model._adjust_missing_and_unexpected_keys(info)
        return Discrepancies(tuple(sorted(info.missing_keys)), tuple(sorted(info.unexpected_keys)))

    def of_other_towers(self, names: Sequence[str]) -> frozenset[str]:
        """Those tensors of a checkpoint that are of a tower (vision, audio) which this text model does without."""
        if not names or not class_takes_config(AutoModelForImageTextToText, self.config):
            return frozenset()
        whole = Skeleton(self.config, self.placement, auto_class=AutoModelForImageTextToText)
        return frozenset(name for name, targets in whole.targets(names).items() if targets[0] in whole.weights)

    def install(self, tensors: Mapping[str, CheckpointTensor]) -> None:
        """Convert tensors of the checkpoint into weights of the model.

        Raises:
            StudyError: If one does not convert, or has another shape than the model's.
        """
        with _one_after_the_other():
            info, _ = convert_and_load_state_dict_in_model(self.model, dict(tensors), self._load_config)
        for name, trace in info.conversion_errors.items():
            raise _does_not_fit(name, got=_last_line(trace))
        for name, got, expected in info.mismatched_keys:
            raise _does_not_fit(name, expected=f"shape {list(expected)}", got=f"shape {list(got)}")
        if info.error_msgs:
            raise _does_not_fit(type(self.model).__name__, got="; ".join(info.error_msgs))

    def tie_weights(self, loaded: Iterable[str]) -> None:
        """Have weights that the family ties share one tensor, whichever of them was in the checkpoint."""
        self.model.tie_weights(missing_keys=set(self.weights) - set(loaded), recompute_mapping=False)


def _with_block_scales(quantizer: HfQuantizer) -> HfQuantizer:
    operation: type[ConversionOps] = quantizer.get_load_operations()["dequantize"]
    if operation is Fp8Dequantize:
        quantizer.get_load_operations = lambda: {"dequantize": BlockFp8Dequantize}
    return quantizer


def _same_weight(name: str, tied: Mapping[str, str]) -> set[str]:
    """The names of the weights that share a tensor with one, itself included."""
    source = tied.get(name, name)
    return {source, *(other for other, its_source in tied.items() if its_source == source)}


@contextmanager
def _one_after_the_other() -> Iterator[None]:
    """Have the conversion take its tensors one weight at a time, without threads and without a progress bar."""
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        with model_bars_hidden():
            yield
    finally:
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before


def _does_not_fit(name: str, **details: Any) -> StudyError:
    return StudyError(
        "A tensor of the checkpoint does not fit the model.",
        key=name,
        remedy="Check that config.json and the shards belong together; fetch the model again.",
        **details,
    )


def _last_line(trace: str) -> str:
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line for line in lines if "Error: " in line and not line.startswith("Error")]
    return (causes or lines or [trace])[0]
