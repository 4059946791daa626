"""The configuration of the model `simple`: one class for the dense model and for its mixture of experts."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SimpleConfig(PreTrainedConfig):
    """Sizes of a `SimpleForCausalLM`; with `num_local_experts` it is a mixture of experts."""

    # Transformers takes any keyword and checks types itself; jaxtyping's checks would see the fields alone.
    __no_type_check__ = True

    model_type = "outlier_moe_simple"
    attribute_map = {"num_experts": "num_local_experts"}

    vocab_size: int = 50257
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    num_local_experts: int | None = None
    num_experts_per_tok: int = 2
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
