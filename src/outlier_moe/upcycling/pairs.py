"""The pairs of a dense model and its mixture of experts, and their sizes.

`simple`: LayerNorm, GELU and PyTorch's attention. `smollm`: RoPE, RMSNorm and SwiGLU, transformers' own Llama and
Mixtral.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from outlier_moe.architectures.simple_config import SimpleConfig
from outlier_moe.architectures.simple_model import register_simple
from outlier_moe.training.parameter_counts import CountedModel
from outlier_moe.upcycling.study import ExpertSizes, ModelSizes, Pair

register_simple()

SIZES: dict[tuple[Pair, str], ModelSizes] = {
    ("simple", "small"): ModelSizes(50257, 256, 4, 4, 1024, 256),
    ("simple", "reference"): ModelSizes(50257, 832, 7, 8, 3328, 256),
    ("smollm", "small"): ModelSizes(50257, 256, 4, 4, 688, 256),
    ("smollm", "reference"): ModelSizes(50257, 832, 7, 8, 2220, 256),
}
"""The published sizes of the experiment; the study's own are in its configuration."""


def model_config(
    pair: Pair, sizes: ModelSizes, experts: ExpertSizes | None = None, *, end_of_text: int | None = None
) -> PreTrainedConfig:
    """The configuration of a pair's dense model, or, with experts, of its mixture.

    Args:
        pair: The pair.
        sizes: Of the dense model.
        experts: Those of the mixture.
        end_of_text: The token behind each document.
    """
    common: dict[str, Any] = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.d_model,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.n_heads,
        "intermediate_size": sizes.d_ff // (experts.granularity if experts else 1),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }
    if experts is not None:
        common.update(num_local_experts=experts.n_experts, num_experts_per_tok=experts.top_k)
    if pair == "simple":
        return SimpleConfig(**common)
    # The same epsilon and base for both, which differ in their defaults.
    common.update(
        num_key_value_heads=sizes.n_heads,
        max_position_embeddings=sizes.sequence_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaConfig(**common) if experts is None else MixtralConfig(**common)


def new_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(seed)
    return with_exact_experts(AutoModelForCausalLM.from_config(config))


def with_exact_experts(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model's experts run one after the other, each on all its tokens at once.

    It takes no longer on a CPU, and experts that are twins stay so to the last bit: grouped products sum each expert's
    gradients in another order, and of the difference, which reaches the router, Adam makes full steps.
    """
    if has_experts(model.config):
        model.set_experts_implementation("eager")
    return model


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether a configuration of one of the pairs is that of a mixture."""
    return getattr(config, "num_local_experts", None) is not None


def counted_models() -> Iterator[CountedModel]:
    """The published sizes of both pairs, dense and as mixtures."""
    for (pair, size), sizes in SIZES.items():
        for experts in (None, ExpertSizes()):
            config = model_config(pair, sizes, experts)
            yield CountedModel(
                experiment="upcycle",
                model=f"{pair}-{size}",
                kind="moe" if experts else "dense",
                d_model=sizes.d_model,
                n_layers=sizes.n_layers,
                build=partial(AutoModelForCausalLM.from_config, config),
                active_share_of_experts=experts.top_k / experts.n_experts if experts else 1.0,
            )
