"""What is left out of a checkpoint is named; all else that becomes no weight is refused."""

from __future__ import annotations

import re

import pytest

from outlier_moe.streaming.no_account import of_no_account

LAYERS = re.compile(r"model\.layers\.(\d+)\.")


def left(*names: str, is_quantized: bool = True, n_layers: int = 4) -> set[str]:
    targets = {name: (name,) for name in names}
    return {*of_no_account(names, targets, layers=LAYERS, n_layers=n_layers, is_quantized=is_quantized)}


@pytest.mark.parametrize("name", [
    "model.layers.0.mlp.up_proj.input_scale", "model.layers.0.mlp.up_proj.input_global_scale",
    "model.layers.0.mlp.up_proj.input_zero_point", "model.layers.0.mlp.up_proj.output_scale",
    "model.layers.0.mlp.up_proj.activation_scale", "model.layers.0.self_attn.k_scale",
    "model.layers.0.self_attn.k_proj.k_scale", "model.layers.0.self_attn.v_proj.output_scale",
    "model.layers.0.self_attn.q_scale", "model.layers.0.self_attn.k_zero_point",
    "model.layers.0.mlp.experts.gate_up_proj_input_scale", "layers.0.attention.wq.qscale_act",
])  # fmt: skip
def test_scales_of_activations_and_of_the_cache(name: str) -> None:
    assert left(name) == {name}
    assert left(name, is_quantized=False) == set(), "it may be a weight"


@pytest.mark.parametrize("name", [
    "model.layers.0.mlp.up_proj.weight_scale", "model.layers.0.mlp.up_proj.weight_scale_2",
    "model.layers.0.mlp.up_proj.weight_global_scale", "model.layers.0.mlp.up_proj.pre_quant_scale",
    "model.layers.0.mlp.up_proj.smooth_scale", "model.layers.0.mlp.up_proj.weight_zero_point",
    "model.layers.0.mlp.up_proj.bias", "model.layers.0.mlp.scale", "model.layers.4.mlp.up_proj.weight",
    "model.layers.4.enorm.weight", "model.layers.0.eh_proj.weight", "model.layers.0.prompt.weight",
])  # fmt: skip
def test_what_may_change_a_weight_is_not(name: str) -> None:
    assert left(name) == set()


@pytest.mark.parametrize("names", [
    ["model.layers.4.eh_proj.weight", "model.layers.4.mlp.up_proj.weight", "model.layers.4.embed_tokens.weight"],
    ["model.layers.4.enorm.weight", "model.layers.4.hnorm.weight", "model.layers.5.eh_proj.weight_scale_inv"],
    ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight_packed", "mtp.norm.weight"],
    ["model.mtp.layers.0.eh_proj.weight", "model.mtp_layers.0.mlp.up_proj.weight"],
    ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight", "mtp.0.ffn.w1.scale"],
    ["model.nextn.0.weight", "model.language_model.mtp_linear_proj.0.weight"],
])  # fmt: skip
def test_layers_that_predict_tokens_further_ahead(names: list[str]) -> None:
    assert left(*names, is_quantized=False) == set(names)
    assert left("model.layers.0.self_attn.rotary_emb.inv_freq", is_quantized=False)
