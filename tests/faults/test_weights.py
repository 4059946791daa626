"""Both drivers have the same weights of a checkpoint, quantised or with other towers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from outlier_moe.architectures.structure import find_structure
from outlier_moe.recording.resident import load_resident
from outlier_moe.streaming.layer_store import REST
from tests import zoo
from tests.compressed import SCHEMES, compress, scheme
from tests.streaming import CPU, open_store


def quantised(directory: Path) -> Path:
    """A checkpoint whose experts are NVFP4, whose attention is FP8, and with scales of activations beside them."""
    zoo.save_checkpoint("mixtral", directory, dtype=torch.bfloat16)
    tensors = {}
    for shard in sorted(directory.glob("*.safetensors*")):
        tensors |= load_file(shard) if shard.suffix == ".safetensors" else {}
        shard.unlink()
    chosen = {"experts": "nvfp4", "self_attn": "float-quantized fp8 channel"}
    for part, of in chosen.items():
        for name in [name for name in tensors if f".{part}." in name]:
            module = name.removesuffix(".weight")
            stored = compress(tensors.pop(name), scheme(of)) | {"input_scale": torch.ones(1)}
            tensors |= {f"{module}.{leaf}": tensor for leaf, tensor in stored.items()}
    groups = {part: {**SCHEMES[of], "targets": [f"re:.*{part}.*"]} for part, of in chosen.items()}
    section = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", ["quantised", "gemma3"])
def test_both_drivers_have_the_same_weights(name: str, tmp_path: Path) -> None:
    checkpoint = quantised(tmp_path) if name == "quantised" else zoo.save_checkpoint(name, tmp_path)
    resident = load_resident(checkpoint, dtype="bfloat16", device=CPU)
    with open_store(checkpoint, dtype="bfloat16") as store:
        for portion in (REST, *range(store.n_layers)):
            store.install(portion, store.read(portion))
    expected = dict(find_structure(store.model).backbone.named_parameters())
    for path, weight in find_structure(resident).backbone.named_parameters():
        assert not weight.is_meta and torch.equal(weight, expected[path]), path
    with torch.no_grad():
        hidden = find_structure(resident).backbone(input_ids=zoo.tokens(), use_cache=False).last_hidden_state
    assert hidden.isfinite().all()
