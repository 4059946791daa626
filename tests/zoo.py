"""Tiny random checkpoints of every family, in the layout the hub uses.

`save_checkpoint` goes through transformers' own `save_pretrained`, which writes each family's published keys: one
tensor per expert, fused projections split, and so on. Weights are random but for a seed, norms and biases included, so
that no two tensors are alike and none is a neutral element.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from outlier_moe.architectures.model_class import model_class_for

D_MODEL = 64
N_LAYERS = 6
N_EXPERTS = 8

# What a field of a configuration is set to wherever a family has it.
SIZES: Mapping[str, Any] = dict(
    vocab_size=256,
    hidden_size=D_MODEL,
    n_embd=D_MODEL,
    d_model=D_MODEL,
    intermediate_size=96,
    intermediate_size_mlp=96,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=32,
    num_hidden_layers=N_LAYERS,
    n_layer=N_LAYERS,
    n_layers=N_LAYERS,
    num_attention_heads=4,
    n_head=4,
    n_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=N_EXPERTS,
    num_local_experts=N_EXPERTS,
    n_routed_experts=N_EXPERTS,
    moe_num_experts=N_EXPERTS,
    num_experts_per_tok=2,
    num_experts_per_token=2,
    moe_topk=2,
    moe_k=2,
    n_shared_experts=1,
    num_shared_experts=1,
    n_group=2,
    topk_group=1,
    num_expert_group=2,
    first_k_dense_replace=2,
    index_topk=16,
    index_head_dim=16,
    index_n_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_head_dim=16,
    linear_num_heads=4,
    sliding_window=8,
    attention_chunk_size=8,
    max_position_embeddings=512,
    n_positions=512,
    max_seq_len=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)
TOWER_SIZES: Mapping[str, Any] = dict(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_layers=1,
    depth=1,
    num_attention_heads=2,
    num_heads=2,
    embed_dim=32,
    mlp_dim=32,
    patch_size=14,
    image_size=28,
    out_hidden_size=D_MODEL,
    projection_intermediate_size=64,
    projector_hidden_size=64,
    merged_hidden_size=128,
    patch_sizes=[4],
    hidden_sizes=[32],
    depths=[1],
    vision_output_dim=64,
    projector_input_dim=64,
    projector_output_dim=64,
)
LATENT_ATTENTION = dict(
    num_key_value_heads=4,
    kv_lora_rank=16,
    q_lora_rank=32,
    qk_rope_head_dim=8,
    qk_nope_head_dim=16,
    v_head_dim=16,
    head_dim=None,
)
MAMBA2 = dict(mamba_n_heads=4, mamba_d_head=32, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16)
ALTERNATE = ["sliding_attention", "full_attention"] * 3


@dataclass(frozen=True)
class Variety:
    """One kind of checkpoint."""

    model_type: str
    """The family's name in transformers."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the (text) configuration that `SIZES` does not settle; None leaves the family's own default."""
    towers: bool = False
    """Whether the configuration holds others for images and the like."""
    with_towers: bool = False
    """Whether to take the class with the towers though there is one for text alone."""


def _text(*model_types: str, **fields: Any) -> dict[str, Variety]:
    return {model_type: Variety(model_type, fields) for model_type in model_types}


def _towers(*model_types: str, **fields: Any) -> dict[str, Variety]:
    return {model_type: Variety(model_type, fields, towers=True) for model_type in model_types}


GEMMA_LAYERS = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=256, num_kv_shared_layers=2)

DENSE: Mapping[str, Variety] = {
    **_text("gpt2", "bloom", "falcon", "gpt_neox", "gpt_bigcode", "mpt", "stablelm", "starcoder2", "phi", "phi3"),
    **_text("gptj", rotary_dim=8),
    **_text("opt", word_embed_proj_dim=D_MODEL, ffn_dim=96),
    **_text("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "olmo3", "gemma", "gemma2", "gemma3_text", "glm4"),
    **_text("smollm3", "seed_oss", "exaone4", "apertus", "cohere2", "granite", "bitnet", "nemotron"),
    **_towers("gemma3", "mistral3"),
    **_text("gemma3n_text", **GEMMA_LAYERS, laurel_rank=8, layer_types=ALTERNATE, intermediate_size=[96] * N_LAYERS),
    **_text("gemma4_text", **GEMMA_LAYERS, layer_types=ALTERNATE, global_head_dim=16),
    "gemma4": Variety("gemma4", {**GEMMA_LAYERS, "layer_types": ALTERNATE, "global_head_dim": 16}, towers=True),
    "gemma4@towers": Variety(
        "gemma4", {**GEMMA_LAYERS, "layer_types": ALTERNATE, "global_head_dim": 16}, towers=True, with_towers=True
    ),
    **_text("qwen3_5_text", "olmo_hybrid", "lfm2", "lfm3", "mamba", "falcon_mamba", "recurrent_gemma"),
    **_text("mamba2", num_heads=8, head_dim=16, state_size=8, n_groups=1, chunk_size=16),
    **_text("bamba", **{**MAMBA2, "mamba_n_heads": 8, "mamba_d_head": 16}, attn_layer_indices=[1, 3]),
    **_text("falcon_h1", **{**MAMBA2, "mamba_d_head": 16}, mamba_d_ssm=64),
    "falcon_h1+multipliers": Variety(
        "falcon_h1",
        {**MAMBA2, "mamba_d_head": 16, "mamba_d_ssm": 64, "ssm_in_multiplier": 1.5, "attention_in_multiplier": 0.75},
    ),
}

MOE: Mapping[str, Variety] = {
    **_text("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "gpt_oss", "phimoe"),
    **_towers("qwen3_5_moe", "llama4"),
    **_towers("qwen3_vl_moe", rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3])),
    "qwen3_5_moe@towers": Variety("qwen3_5_moe", towers=True, with_towers=True),
    "llama4@towers": Variety("llama4", towers=True, with_towers=True),
    **_text("llama4_text"),
    "llama4_text+maverick": Variety("llama4_text", dict(interleave_moe_layer_step=2)),
    "gemma4_text+moe": Variety(
        "gemma4_text",
        dict(
            hidden_size_per_layer_input=0,
            num_kv_shared_layers=0,
            global_head_dim=16,
            enable_moe_block=True,
            top_k_experts=2,
        ),
    ),
    **_text("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_linear", "glm4_moe_lite", **LATENT_ATTENTION),
    **_text("glm_moe_dsa", "axk1", "axk2", "bailing_hybrid", "mistral4", **LATENT_ATTENTION),
    "glm_moe_dsa+shared": Variety(
        "glm_moe_dsa", {**LATENT_ATTENTION, "indexer_types": ["full", "shared", "full", "shared", "shared", "full"]}
    ),
    **_text("hy_v4", **{**LATENT_ATTENTION, "head_dim": 16}),
    **_towers("kimi_k25", "mistral_large4", **LATENT_ATTENTION),
    **_towers(
        "glm5_next",
        **{**LATENT_ATTENTION, "qk_rope_head_dim": 0},
        indexer_types=["full", "shared"] * 3,
        layer_types=["full_attention"] * N_LAYERS,
    ),
    **_text(
        "deepseek_v4",
        num_key_value_heads=1,
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=16,
        head_dim=32,
        compress_rates=dict(compressed_sparse_attention=4, heavily_compressed_attention=8),
    ),
    **_text("glm4_moe", "minimax_m2", "hy_v3", "dots1", "solar_open", "exaone_moe", "afmoe", "flint", "kolibri1"),
    **_text("minimax", block_size=16),
    **_towers("minimax_m3_vl", shared_intermediate_size=32, dense_intermediate_size=96),
    **_text("ernie4_5_moe", moe_layer_start_index=1),
    **_text("hunyuan_v1_moe", moe_topk=[2] * N_LAYERS),
    **_text(
        "nemotron_h",
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=16,
        moe_shared_expert_intermediate_size=32,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
    ),
    **_text(
        "jamba",
        mamba_d_state=8,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
    **_text("granitemoe", "flex_olmo", "cohere2_moe", "laguna", "mellum"),
    **_text("granitemoeshared", shared_intermediate_size=32),
    **_text("granitemoehybrid", **MAMBA2, shared_intermediate_size=32, layer_types=["mamba", "attention"] * 3),
    **_text(
        "longcat_flash",
        **{**LATENT_ATTENTION, "head_dim": 8},
        num_layers=3,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=32,
        zero_expert_num=4,
    ),
    **_text("mimo_v2_flash", v_head_dim=8),
    **_text("lfm2_moe", layer_types=["conv", "full_attention"] * 3, num_dense_layers=2),
    **_text(
        "dbrx",
        attn_config=dict(kv_n_heads=2, clip_qkv=8, rope_theta=1e4),
        ffn_config=dict(ffn_hidden_size=96, moe_num_experts=N_EXPERTS, moe_top_k=2, hidden_size=D_MODEL),
    ),
    **_text("jetmoe", kv_channels=16, num_key_value_heads=4),
    **_text("zaya", num_experts_per_tok=1, router_hidden_size=32),
    **_text(
        "qwen4_exp_text",
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=16,
        indexer_compress_ratio=4,
        hc_lowrank=8,
        ple_embed_dim=64,
        ngram_vocab_size_base=512,
        split_ngram_parts=2,
    ),
    **_text("inkling2_text", n_layers_per_attn_res_block=2, swa_head_dim=16, rel_extent=64),
    **_towers("step3p7", share_expert_dim=32),
    **_towers("muse_spark", moe_hidden_size=32),
}

NOT_SUPPORTED: Mapping[str, Variety] = _text("hrm_text")
ZOO: Mapping[str, Variety] = {**DENSE, **MOE}


def tiny_config(name: str) -> PreTrainedConfig:
    """The configuration of a variety."""
    variety = {**ZOO, **NOT_SUPPORTED}[name]
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[variety.model_type]
    if not variety.towers:
        return config_class(**_fitting(config_class, variety.fields))
    whole = config_class()
    parts: dict[str, Any] = {}
    for part in whole.sub_configs:
        own: PreTrainedConfig | None = getattr(whole, part, None)
        if own is None:
            continue
        values = _fitting(type(own), variety.fields) if part == "text_config" else _tower_sizes(own)
        parts[part] = type(own)(**values).to_dict()
    return config_class(**_tower_sizes(whole), **parts)


def _tower_sizes(config: PreTrainedConfig) -> dict[str, Any]:
    known = config.to_dict()
    return {key: value for key, value in TOWER_SIZES.items() if key in known}


def _fitting(config_class: type[PreTrainedConfig], fields: Mapping[str, Any]) -> dict[str, Any]:
    known = {*config_class().to_dict(), *config_class.attribute_map, *config_class.__dataclass_fields__}
    values = {key: value for key, value in SIZES.items() if key in known} | dict(fields)
    return {key: value for key, value in values.items() if value is not None}


def tiny_model(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of a variety with random weights, the same at each call, ready to run."""
    config = tiny_config(name)
    auto_class = AutoModelForImageTextToText if ZOO.get(name, Variety("")).with_towers else model_class_for(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        # As `from_pretrained` does.
        if any(part in path for part in model._keep_in_fp32_modules_strict or ()):
            parameter.data = parameter.data.float()
    saved = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for tensor in saved.values():
            if tensor.is_floating_point() and tensor.numel() > 1:
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
    return model


def save_checkpoint(
    name: str, directory: Path, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "150KB"
) -> Path:
    """Write a variety's checkpoint, in several shards, as the hub has it."""
    shutil.rmtree(directory, ignore_errors=True)
    tiny_model(name, dtype=dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


@cache
def tokens(n_sequences: int = 2, n_positions: int = 12) -> torch.Tensor:
    """Tokens without a special one among them."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, 256, (n_sequences, n_positions), generator=generator)
