"""Metadata of a GGUF file that transformers ignores: it goes into the configuration, or is refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from transformers import PreTrainedConfig

from outlier_moe.errors import StudyError
from outlier_moe.sources.gguf_parts import value

# Keys behind the architecture's name, and the field of the configuration that means the same.
_FIELDS = {
    "attention.key_length": "head_dim",
    "context_length": "n_positions",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "norm_epsilon")
# Layers of the models whose queries llama.cpp divides by another width than a head's; no file says so.
_LARGE_GEMMAS = {"gemma2": 46, "gemma3": 62}
# Architectures whose keys of that name mean something else.
_OTHERWISE = {"gemma4", "qwen35", "qwen35moe", "lfm2"}
# Factors that no configuration of a family that transformers reads from GGUF has; 0 and 1 change nothing.
_SCALES = ("logit_scale", "residual_scale", "embedding_scale", "attention.scale", "expert_weights_scale")
# The parameters with which Llama 3.1 and 3.2 stretch their rotary frequencies.
_LLAMA3 = [{"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0} for factor in (8.0, 32.0, 16.0)]
_LLAMA3_LENGTH = 8192
_ROPE_FACTORS = "rope_freqs.weight"


def refuse_unknown_architecture(reader: GGUFReader, file: Path) -> None:
    """Refuse files that are not models, and architectures that transformers cannot read.

    Raises:
        StudyError: If it is so.
    """
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    kind, architecture = value(reader, "general.type", "model"), str(value(reader, "general.architecture"))
    if kind != "model" or architecture == "clip":
        raise StudyError(
            "A GGUF file is of no language model.",
            file=file,
            key="general.type",
            expected="model",
            got="a vision projector (mmproj)" if architecture == "clip" or kind == "mmproj" else kind,
            remedy="Name the language model's file; an adapter has to be merged into it first (llama-export-lora).",
        )
    pooling = value(reader, f"{architecture}.pooling_type", 0)
    if pooling or value(reader, f"{architecture}.attention.causal", True) is False:
        raise StudyError(
            "A GGUF file is of an embedding or ranking model, and no decoder language model.",
            file=file,
            key=f"{architecture}.{'pooling_type' if pooling else 'attention.causal'}",
            expected="none, or 0" if pooling else "true",
            got=pooling or False,
            remedy="Take the language model that it was made from: of this one no loss is defined.",
        )
    # Two names by which transformers lists an architecture under another spelling.
    known = {*GGUF_SUPPORTED_ARCHITECTURES, "qwen2moe", "qwen3moe", "gpt-oss", "minimax-m2"} - {"general", "tokenizer"}
    if architecture not in known and not is_gguf_arch_supported(architecture):
        raise StudyError(
            "transformers cannot read this architecture from GGUF.",
            file=file,
            key="general.architecture",
            expected="one of " + ", ".join(sorted(known)),
            got=architecture,
            remedy="Take the model's checkpoint in safetensors, from the hub or as a source of kind `directory`.",
        )


def complete_config(config: PreTrainedConfig, reader: GGUFReader, file: Path) -> PreTrainedConfig:
    """A configuration with what transformers left out of the metadata.

    Raises:
        StudyError: If something that changes what is computed has no place in it.
    """
    architecture = value(reader, "general.architecture")
    said: Mapping[str, Any] = {
        key.removeprefix(f"{architecture}."): value(reader, key)
        for key in reader.fields
        if key.startswith(f"{architecture}.")
    }
    if architecture not in _OTHERWISE:
        _complete_fields(config, said)
        _complete_gemma(config, architecture)
        _complete_rope(config, said, file)
        _refuse_partial_rotation(config, said, file)
    for key in _SCALES:
        if said.get(key) not in (None, 0, 0.0, 1, 1.0):
            raise _no_place(file, f"{architecture}.{key}", said[key])
    _complete_llama3(config, reader, file)
    return config


def _complete_fields(config: PreTrainedConfig, said: Mapping[str, Any]) -> None:
    """Copy single fields, also if transformers looks for them under another key."""
    for key, field in _FIELDS.items():
        # A family's own name for a field is no field.
        if key in said and field in vars(config) and not isinstance(said[key], list):
            # Files of Phi-4 have a window of 0, for none.
            setattr(config, field, said[key] or (None if field == "sliding_window" else said[key]))
    epsilons = {said[key] for end in ("rms_", "") if (key := f"attention.layer_norm_{end}epsilon") in said}
    if len(epsilons) == 1:
        (epsilon,) = epsilons
        for field in _EPSILONS:
            if hasattr(config, field):
                setattr(config, field, epsilon)


def _complete_gemma(config: PreTrainedConfig, architecture: str) -> None:
    """The divisor of Gemma's queries, which llama.cpp has built in."""
    if architecture in _LARGE_GEMMAS:
        is_large = config.num_hidden_layers == _LARGE_GEMMAS[architecture]
        width = config.hidden_size // config.num_attention_heads if is_large else config.head_dim
        config.query_pre_attn_scalar = width


def _no_place(file: Path, key: str, got: Any) -> StudyError:
    return StudyError(
        "A GGUF file says something of its model that transformers does not read.",
        file=file,
        key=key,
        got=got,
        remedy="Take the checkpoint that it was made from, in safetensors: the figures would be of another model.",
    )


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _complete_rope(config: PreTrainedConfig, said: Mapping[str, Any], file: Path) -> None:
    """Base and scaling of rotary positions: linear scaling is copied, other missing kinds are refused."""
    rope = _rope(config)
    # Where local and global layers rotate otherwise, the file's keys are of the global ones.
    by_layers = rope if "full_attention" in rope else {"full_attention": rope}
    own = by_layers["full_attention"] = dict(by_layers["full_attention"])
    if "rope.freq_base" in said and "rope_theta" in own:
        own["rope_theta"] = float(said["rope.freq_base"])
    if "rope.freq_base_swa" in said and "sliding_attention" in rope:
        rope["sliding_attention"] = {**rope["sliding_attention"], "rope_theta": float(said["rope.freq_base_swa"])}
    kind, factor = said.get("rope.scaling.type", "none"), said.get("rope.scaling.factor", said.get("rope.scale_linear"))
    if "rope.scaling.type" not in said and factor not in (None, 0, 1):
        # As llama.cpp takes files without a kind.
        kind = "linear"
    if kind == "linear" and factor is not None:
        own |= {"rope_type": "linear", "factor": float(factor)}
    elif kind not in ("none", own.get("rope_type")):
        raise _no_place(file, "rope.scaling.type", kind)
    if own:
        config.rope_parameters = rope if by_layers is rope else own


def _refuse_partial_rotation(config: PreTrainedConfig, said: Mapping[str, Any], file: Path) -> None:
    """Refuse a share of a head that is rotated if the configuration says another."""
    rotated, heads = said.get("rope.dimension_count"), getattr(config, "num_attention_heads", None)
    if rotated is None or not heads or hasattr(config, "rotary_dim"):
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    share = _rope(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    if int(width * share) != rotated:
        raise _no_place(file, "rope.dimension_count", f"{rotated} of {width}")


def _complete_llama3(config: PreTrainedConfig, reader: GGUFReader, file: Path) -> None:
    """Find the parameters whose rotary frequencies are those that the file has, stretched, as a tensor."""
    found = [tensor for tensor in reader.tensors if tensor.name == _ROPE_FACTORS]
    if not found:
        return
    factors = np.asarray(found[0].data, np.float64).ravel()
    rope = _rope(config)
    for parameters in _LLAMA3:
        expected = _llama3_factors(len(factors), rope.get("rope_theta", 10000.0), **parameters)
        if np.allclose(factors, expected, rtol=1e-3):
            kept = {"rope_type": "llama3", "original_max_position_embeddings": _LLAMA3_LENGTH, **parameters}
            config.rope_parameters = {**rope, **kept}
            return
    if not np.allclose(factors, 1.0):
        raise _no_place(file, _ROPE_FACTORS, f"{len(factors)} factors from {factors.min():g} to {factors.max():g}")


def _llama3_factors(
    n: int, base: float, *, factor: float, low_freq_factor: float, high_freq_factor: float
) -> np.ndarray:
    """The divisor of each rotary frequency."""
    factors = np.ones(n)
    for i in range(n):
        wavelength = 2 * math.pi * base ** (i / n)
        if wavelength > _LLAMA3_LENGTH / low_freq_factor:
            factors[i] = factor
        elif wavelength > _LLAMA3_LENGTH / high_freq_factor:
            smooth = (_LLAMA3_LENGTH / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
            factors[i] = 1 / ((1 - smooth) / factor + smooth)
    return factors


def refuse_ignored_tensors(model: Any, names: Collection[str], architecture: str, *, file: Path) -> None:
    """Refuse tensors of the file that become no weight of the model, but for rotary factors.

    Raises:
        StudyError: If there are some.
    """
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    if is_gguf_arch_supported(architecture):
        # Its loading report has named them.
        return
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    used = get_gguf_hf_weights_map(model, processor)
    # Experts go by their names without what they end in.
    used = {*used, *(f"{name}.weight" for name in used)}
    ignored = sorted(set(names) - used - {_ROPE_FACTORS, "output.weight"})
    # The head is a weight of its own, or the embedding again.
    if "output.weight" in names and "output.weight" not in used and "lm_head.weight" not in model.state_dict():
        ignored.append("output.weight")
    if ignored:
        raise StudyError(
            "transformers leaves tensors of a GGUF file out.",
            file=file,
            key=", ".join(ignored[:4]) + (f" and {len(ignored) - 4} more" if len(ignored) > 4 else ""),
            expected=f"every tensor as a weight of {type(model).__name__}",
            got=f"{len(ignored)} of {len(names)} tensors without one",
            remedy="Take the checkpoint that it was made from, in safetensors: the figures would be of another model.",
        )
