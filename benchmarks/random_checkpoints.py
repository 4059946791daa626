"""Random bfloat16 checkpoints in shards, with the hub's names, written a layer at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, MixtralConfig

VOCABULARY = 32000
COMMON = {"vocab_size": VOCABULARY, "num_attention_heads": 16, "num_key_value_heads": 16, "dtype": "bfloat16"}
_LLAMA = {"num_hidden_layers": 12, "hidden_size": 2048, "intermediate_size": 8192}
SHAPES: Mapping[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama-6": {**_LLAMA, "num_hidden_layers": 6},
    "llama-24": {**_LLAMA, "num_hidden_layers": 24},
    "mixtral": {"num_hidden_layers": 12, "hidden_size": 1024, "intermediate_size": 2304, "num_local_experts": 8},
    "large": {"num_hidden_layers": 22, "hidden_size": 4096, "intermediate_size": 16384},
}
"""The benchmark's models: 1.9 GB, with half and twice the layers, 1.6 GB and 12.3 GB."""

TensorShapes = dict[str, tuple[int, ...]]


def layer_shapes(name: str, index: int) -> TensorShapes:
    """The tensors of one layer as the hub has them."""
    width, inner = SHAPES[name]["hidden_size"], SHAPES[name]["intermediate_size"]
    layer = f"model.layers.{index}"
    shapes: TensorShapes = {f"{layer}.self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
    shapes |= {f"{layer}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
    n_experts = SHAPES[name].get("num_local_experts")
    if n_experts is None:
        matrices = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        return shapes | {f"{layer}.mlp.{matrix}_proj.weight": shape for matrix, shape in matrices.items()}
    experts = f"{layer}.block_sparse_moe"
    shapes[f"{experts}.gate.weight"] = (n_experts, width)
    for expert in range(n_experts):
        for matrix, shape in {"w1": (inner, width), "w3": (inner, width), "w2": (width, inner)}.items():
            shapes[f"{experts}.experts.{expert}.{matrix}.weight"] = shape
    return shapes


def n_bytes(shapes: TensorShapes) -> int:
    """What tensors take in bfloat16."""
    return 2 * sum(map(math.prod, shapes.values()))


def rest_shapes(name: str) -> tuple[TensorShapes, TensorShapes]:
    """What comes before the layers, and what comes after."""
    width = SHAPES[name]["hidden_size"]
    return (
        {"model.embed_tokens.weight": (VOCABULARY, width)},
        {"model.norm.weight": (width,), "lm_head.weight": (VOCABULARY, width)},
    )


def build_checkpoint(name: str, directory: Path) -> None:
    """Write a random checkpoint, a shard for each layer."""
    config = (MixtralConfig if name == "mixtral" else LlamaConfig)(**COMMON, **SHAPES[name])
    config.architectures = ["MixtralForCausalLM" if name == "mixtral" else "LlamaForCausalLM"]
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    first, last = rest_shapes(name)
    portions = [first, *(layer_shapes(name, index) for index in range(SHAPES[name]["num_hidden_layers"])), last]
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(portions, start=1):
        shard = f"model-{number:05}-of-{len(portions):05}.safetensors"
        tensors = {}
        for key, shape in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
            tensors[key] = values.exp_() if len(shape) == 1 else values.mul_(0.02)
        save_file(tensors, directory / shard)
        weight_map |= dict.fromkeys(tensors, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
