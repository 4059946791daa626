"""What a configuration says of the quantisation of its checkpoint, and whether that can be undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from outlier_moe.errors import StudyError

METHODS = ("compressed-tensors", "fp8", "fbgemm_fp8", "mxfp4")
"""The methods whose weights can be read into plain ones, by the names that transformers gives them."""

# compressed-tensors called its section so before transformers knew it.
SECTIONS = ("quantization_config", "compression_config")
"""The keys of a configuration that hold it."""


def quantization(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """What a configuration says of the quantisation of its checkpoint, if it is quantised."""
    for part in (config, config.get_text_config(decoder=True)):
        for section in SECTIONS:
            said = getattr(part, section, None)
            if said:
                return said if isinstance(said, Mapping) else said.to_dict()
    return None


def readable_quantization(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """The same, after a check that the weights can be dequantised.

    Raises:
        StudyError: If they are quantised in a way that cannot be undone here.
    """
    said = quantization(config)
    if said is None:
        return None
    method = _method(said)
    if method not in METHODS:
        raise StudyError(
            f"The checkpoint is quantised with {method}, which cannot be read into plain weights.",
            file="config.json",
            key="quantization_config.quant_method",
            expected=", ".join(METHODS),
            got=method,
            remedy="Take a checkpoint of the model that is not quantised, or quantised in one of these ways.",
        )
    if method == "compressed-tensors":
        # Imported where it is needed: it takes half a second.
        from outlier_moe.architectures.compressed_schemes import CompressedSchemes

        CompressedSchemes(said)
    return {**said, "quant_method": method}


def _method(said: Mapping[str, Any]) -> str:
    """The quantisation method; old versions of some tools left it out."""
    if method := said.get("quant_method"):
        return str(method)
    if "config_groups" in said:
        return "compressed-tensors"
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "bitsandbytes"
    return "an unnamed method"
