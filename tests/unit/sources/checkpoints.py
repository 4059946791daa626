"""Small checkpoints, as bytes and as folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

INDEX = "model.safetensors.index.json"

CONFIG = {"model_type": "llama", "vocab_size": 96, "torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}


def shards(tensors: Sequence[Sequence[str]]) -> dict[str, bytes]:
    """The files of a sharded checkpoint whose i-th shard holds the i-th names, with its index."""
    names = [f"model-{i:05d}-of-{len(tensors):05d}.safetensors" for i in range(1, len(tensors) + 1)]
    files = {
        name: save({tensor: np.arange(5, dtype=np.float32) for tensor in held})
        for name, held in zip(names, tensors, strict=True)
    }
    weight_map = {tensor: name for name, held in zip(names, tensors, strict=True) for tensor in held}
    return {**files, INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def repository(weights: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The repository of a model: weights in several formats, folders and code beside what is needed."""
    if weights is None:
        weights = {"model.safetensors": save({"embed": np.arange(6, dtype=np.float32)})}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# A model",
        "LICENSE": b"Apache License",
        "modeling_own.py": b"raise SystemExit('code of a repository ran')",
        "pytorch_model.bin": b"pickle",
        "pytorch_model.bin.index.json": b"{}",
        "consolidated.safetensors": b"the same weights again",
        "original/model.safetensors": b"the same weights again",
        "original/params.json": b"{}",
        "onnx/config.json": b"{}",
        **weights,
    }


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
