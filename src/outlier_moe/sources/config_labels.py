"""The labels in a model's configuration: family, kind, size and experts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from outlier_moe.architectures.config_numbers import first_number, n_chosen
from outlier_moe.architectures.model_class import meta_model
from outlier_moe.architectures.moe_parts import Experts, find_experts
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.config.model_labels import ModelLabels

# How families call the number of shared experts. Some join them in one module, so that modules do not tell it.
SHARED_FIELDS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


def config_labels(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> ModelLabels:
    """The labels of the model that a configuration describes.

    Raises:
        StudyError: If the architecture cannot be recorded.
    """
    model = meta_model(config, torch.bfloat16, trust_remote_code=trust_remote_code)
    return model_labels(model, find_structure(model))


def model_labels(model: PreTrainedModel, structure: DecoderStructure) -> ModelLabels:
    """The labels of a model, whose weights may be on the meta device."""
    text = model.config.get_text_config(decoder=True)
    experts = find_experts(structure)
    total = model.num_parameters()
    top_k = n_chosen(text) if experts else None
    active = total - sum(_idle(layer, top_k or 1) for layer in experts.values())
    return ModelLabels(
        family=model.config.model_type,
        kind="moe" if experts else "dense",
        total_params_b=total / 1e9,
        active_params_b=active / 1e9,
        n_experts=max((layer.n_routed for layer in experts.values()), default=None),
        top_k=top_k,
        n_shared_experts=_n_shared(text, experts.values()) if experts else None,
        other_families=tuple({text.model_type, text.model_type.removesuffix("_text")} - {model.config.model_type}),
    )


def _idle(experts: Experts, top_k: int) -> float:
    """Parameters of a layer's experts that do not work on a token; identity experts have none."""
    n_computing = experts.n_routed - experts.n_identity
    n_parameters = sum(parameter.numel() for parameter in experts.module.parameters())
    return n_parameters * (1 - min(top_k, n_computing) / n_computing)


def _n_shared(config: PreTrainedConfig, experts: Iterable[Experts]) -> int:
    return first_number(config, SHARED_FIELDS) or max(len(layer.shared) for layer in experts)
