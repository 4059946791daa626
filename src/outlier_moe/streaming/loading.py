"""A model without its weights, and how tensors of a checkpoint become some of them, by transformers' own means.

Beside `architectures.transformers_private` the one module that touches what transformers does not promise to keep.
`tests/unit/streaming/test_loading.py` checks each name taken from there, so that an upgrade which moves one fails
there and not in a recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.auto import get_hf_quantizer
from transformers.utils.loading_report import LoadStateDictInfo

from outlier_moe.architectures.model_class import AutoClass, meta_model
from outlier_moe.architectures.quantisation import SECTIONS, readable_quantization
from outlier_moe.architectures.transformers_private import class_takes_config
from outlier_moe.errors import StudyError
from outlier_moe.machine.model_bars import model_bars_hidden
from outlier_moe.streaming.fp8 import Fp8Undoing
from outlier_moe.streaming.stored_tensors import CheckpointTensor, UndoneTensor
from outlier_moe.streaming.undoing import NothingToUndo, StoredWeight, Undoing

with torch.device("meta"):
    _LINEAR = nn.Linear(1, 1)


class Placement(NamedTuple):
    """Dtype and device of a model's weights."""

    dtype: torch.dtype
    """Dtype of all weights except those that the family keeps in float32."""
    device: torch.device
    """Device of the weights while a layer runs."""


@dataclass(frozen=True)
class Discrepancies:
    """Missing and unexpected tensors of a checkpoint, without those that the family ignores."""

    missing: tuple[str, ...]
    """Weights of the model that nothing in the checkpoint becomes."""
    unexpected: tuple[str, ...]
    """Names that would have been weights of the model."""


class Skeleton:
    """A model whose weights are on the meta device but whose computed tables (rotary frequencies) are real.

    Args:
        config: The model's configuration.
        placement: How and where the weights will be.
        trust_remote_code: Whether the checkpoint's own code may run.
        auto_class: What makes the model of the configuration, if not what recording runs.

    Raises:
        StudyError: If its checkpoint is quantised in a way that cannot be undone.
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
        said = readable_quantization(config)
        self.quantized = said is not None
        """Whether the checkpoint is."""
        self.undoing = _undoing(said)
        """How its weights become plain before transformers sees them."""
        device_map = {"": placement.device}
        quantizer, config, _ = get_hf_quantizer(_left_to_transformers(config, said), None, device_map, True, {})
        dtype = placement.dtype if quantizer is None else quantizer.update_dtype(placement.dtype)
        self.model = meta_model(config, dtype, trust_remote_code=trust_remote_code, auto_class=auto_class)
        with torch.device("meta"):
            if quantizer is not None:
                quantizer.preprocess_model(model=self.model, dtype=dtype, device_map=device_map, use_kernels=False)
        self._compute_tables()
        self.model.eval()
        self.weights: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        """Every weight that a checkpoint holds, as it is on the meta device."""
        self.rivals: Mapping[str, Sequence[str]] = {}
        """Weights that more than one tensor is, of those last asked about: transformers takes the first by name."""
        self._conversions = [*get_model_conversion_mapping(self.model, None, quantizer), *_from_linear(self.model)]
        self._load_config = LoadStateDictConfig(
            device_map=device_map,
            dtype=dtype,
            dtype_plan=self.model._get_dtype_plan(dtype),
            hf_quantizer=quantizer,
            weight_mapping=cast("list[WeightConverter | WeightRenaming]", self._conversions),
        )

    @property
    def converts_quantized(self) -> bool:
        """Whether transformers' conversion undoes the quantisation."""
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
        whole: dict[str, list[str]] = {}
        joined: set[str] = set()
        # The order in which transformers goes through them: some renamings hold only once another was seen.
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self.weights)
            if target not in self.weights and name in self.weights:
                target, pattern = rename_source_key(name, [], [], prefix, self.weights)
            first, *others = converter_of[pattern].target_patterns if pattern is not None else [target]
            found[name] = (target, *(target.replace(first, other) for other in others))
            if pattern is None:
                whole.setdefault(target, []).append(name)
            else:
                joined.add(target)
        self.rivals = {
            target: tuple(names)
            for target, names in whole.items()
            if target in self.weights and (len(names) > 1 or target in joined)
        }
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

    def stored_weight(self, name: str, parts: Iterable[str], target: str) -> StoredWeight:
        """A weight that is stored in parts, and what its module is where it is quantised."""
        module = self.model.get_submodule(target.rpartition(".")[0])
        # Experts that are one module here were so many linear ones where they were quantised.
        if not isinstance(module, nn.Linear | nn.Embedding):
            module = _LINEAR
        paths = tuple(path.rpartition(".")[0] for path in (name, target))
        return StoredWeight(name, frozenset(parts), paths, module)

    def install(self, tensors: Mapping[str, CheckpointTensor | UndoneTensor]) -> None:
        """Convert tensors of the checkpoint into weights of the model.

        Raises:
            StudyError: If one does not convert, or has another shape than the model's.
        """
        with _one_after_the_other():
            info, _ = convert_and_load_state_dict_in_model(self.model, dict(tensors), self._load_config)
        for name, trace in info.conversion_errors.items():
            raise _does_not_fit(name, got=_last_line(trace))
        for name, got, expected in sorted(info.mismatched_keys):
            raise _does_not_fit(name, expected=f"shape {list(expected)}", got=f"shape {list(got)}")
        if info.error_msgs:
            raise _does_not_fit(type(self.model).__name__, got="; ".join(info.error_msgs))

    def tie_weights(self, loaded: Iterable[str]) -> None:
        """Have weights that the family ties share one tensor, whichever of them was in the checkpoint."""
        self.model.tie_weights(missing_keys=set(self.weights) - set(loaded), recompute_mapping=False)


def _undoing(said: Mapping[str, Any] | None) -> Undoing:
    match (said or {}).get("quant_method"):
        case "compressed-tensors":
            # Imported where they are needed: compressed-tensors takes half a second.
            from outlier_moe.architectures.compressed_schemes import CompressedSchemes
            from outlier_moe.streaming.compressed import CompressedUndoing

            return CompressedUndoing(CompressedSchemes(said or {}))
        case "fp8" | "fbgemm_fp8":
            return Fp8Undoing(said or {})
    return NothingToUndo()


def _left_to_transformers(config: PreTrainedConfig, said: Mapping[str, Any] | None) -> PreTrainedConfig:
    """A configuration that says no more of a quantisation than transformers is to undo."""
    if said is None:
        return config
    config = deepcopy(config)
    for part in (config, config.get_text_config(decoder=True)):
        for section in SECTIONS:
            if hasattr(part, section):
                if said["quant_method"] == "mxfp4":
                    setattr(part, section, {**said, "dequantize": True})
                else:
                    delattr(part, section)
    return config


def _from_linear(model: nn.Module) -> list[WeightConverter]:
    """The conversion that joins Llama 4's experts if a tool split them into linear modules to quantise them."""
    if not any(type(module).__name__ == "Llama4TextExperts" for module in model.modules()):
        return []
    experts = "feed_forward.experts"
    gate, up, down = (f"{experts}.*.{name}_proj.weight" for name in ("gate", "up", "down"))
    joined = [MergeModulelist(dim=0), Concatenate(dim=1), Transpose(dim0=1, dim1=2)]
    return [
        WeightConverter([gate, up], f"{experts}.gate_up_proj", joined),
        WeightConverter(down, f"{experts}.down_proj", [joined[0], joined[2]]),
    ]


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
        remedy="Check that config.json and the shards are of the same model and save.",
        **details,
    )


def _last_line(trace: str) -> str:
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line for line in lines if "Error: " in line and not line.startswith("Error")]
    return (causes or lines or [trace])[0]
