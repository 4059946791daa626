"""The plan counts what compressed-tensors stores, and refuses what a recording refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MixtralConfig

from outlier_moe.errors import StudyError
from outlier_moe.planning.packed_bits import PackedBits
from outlier_moe.planning.sizes import model_sizes
from tests import zoo
from tests.compressed import SCHEMES, compress, scheme

CLASSES = {"config_groups": {"group_0": {**SCHEMES["pack int4 group"], "targets": ["Linear"]}}, "ignore": ["lm_head"]}


@pytest.mark.parametrize("name", SCHEMES)
def test_bits_are_those_of_the_stored_parts(name: str) -> None:
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    parts = compress(weight, scheme(name))
    stored = sum(part.nbytes for leaf, part in parts.items() if leaf != "weight_shape")
    said = {"format": "mixed-precision", "config_groups": {"group_0": {**SCHEMES[name], "targets": ["Linear"]}}}
    bits = PackedBits(said).bits("model.layers.0.mlp.up_proj.weight", weight, nn.Linear(1, 1))
    assert bits is not None
    assert bits * weight.numel() / 8 == pytest.approx(stored, rel=0.06)


@pytest.mark.parametrize("config_class", [LlamaConfig, MixtralConfig])
def test_only_what_the_groups_target_is_counted_as_packed(config_class: type) -> None:
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=64, dtype="bfloat16")
    heads = dict(num_attention_heads=4, num_key_value_heads=4)
    plain, whole = (
        model_sizes(config_class(**sizes, **heads, **section))
        for section in ({}, {"quantization_config": {"quant_method": "compressed-tensors", **CLASSES}})
    )
    assert whole.is_quantized and whole.rest == plain.rest
    assert 0.28 < whole.layers[0].stored / plain.layers[0].stored < 0.36
    one = {**CLASSES["config_groups"]["group_0"], "targets": [r"re:.*layers\.1\.self_attn.*"]}
    said = {"quant_method": "compressed-tensors", "config_groups": {"group_0": one}}
    part = model_sizes(config_class(**sizes, **heads, quantization_config=said))
    assert part.layers[0].stored == plain.layers[0].stored > part.layers[1].stored > whole.layers[1].stored


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "quanto", "hqq", "aqlm", "modelopt", None])
def test_a_method_that_cannot_be_undone_is_named(method: str | None) -> None:
    config = zoo.tiny_config("llama")
    config.quantization_config = {"quant_method": method, "bits": 4}
    with pytest.raises(StudyError, match=method or "unnamed") as error:
        model_sizes(config)
    assert error.value.remedy
