"""Quantised checkpoints become the plain weights that the definitions of their formats give."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import INDEX
from outlier_moe.streaming.layer_store import REST, LayerStore
from tests import zoo
from tests.streaming import all_equal, open_store, resident_hidden, streamed_hidden

BLOCK = 128
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32, "strategy": "group"},
        }
    },
}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

Quantise = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
"""What is stored for a weight, by the ends of names, and the plain weight that it stands for."""


def save_quantised(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def read_plain(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for shard in checkpoint.glob("*.safetensors"):
        tensors |= load_file(shard)
    return json.loads((checkpoint / "config.json").read_text()), tensors


def quantised_pair(plain: Path, quantise: Quantise, settings: dict[str, Any]) -> tuple[Path, Path]:
    """A quantised checkpoint and the plain one that it stands for."""
    config, tensors = read_plain(plain)
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts, value = quantise(name, tensor)
        stored |= {name.removesuffix("weight") + part if part else name: x for part, x in parts.items()}
        meant[name] = value
    quantised = save_quantised(plain.with_name("quantised"), {**config, "quantization_config": settings}, stored)
    return quantised, save_quantised(plain.with_name("meant"), config, meant)


def weights_of(store: LayerStore) -> dict[str, Tensor]:
    for portion in (REST, *range(store.n_layers)):
        store.install(portion, store.read(portion))
    return dict(store.model.state_dict())


def check_same_weights(quantised: Path, meant: Path) -> None:
    got, expected = (weights_of(open_store(path, dtype="bfloat16")) for path in (quantised, meant))
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        assert torch.equal(got[name], expected[name]), name


@pytest.fixture
def deepseek(tmp_path: Path) -> Path:
    """A tiny model with DeepSeek-V3's 576 rows in `kv_a_proj_with_mqa`, and experts of 192."""
    config = DeepseekV3Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=160,
        moe_intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=16,
        v_head_dim=16,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def to_fp8(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Blocks of 128 x 128, each with a scale; the last ones of a matrix may be partial."""
    if not name.endswith("_proj.weight") and "_proj_with_mqa" not in name and "_a_proj" not in name:
        return {"": weight}, weight
    rows, columns = weight.shape
    scales = torch.ones(math.ceil(rows / BLOCK), math.ceil(columns / BLOCK))
    stored = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    meant = torch.empty_like(weight)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[block].float().abs().max() / 448
            stored[block] = (weight[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
            meant[block] = (stored[block].float() * scales[i, j]).to(weight.dtype)
    return {"weight": stored, "weight_scale_inv": scales}, meant


def to_int4(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Groups of 32 along a row, each with a scale; eight values to an int32, the first in the lowest bits."""
    if ".experts." not in name:
        return {"": weight}, weight
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, -1, 32)
    scales = (groups.abs().amax(-1) / 7).to(weight.dtype)
    values = (groups / scales.float().unsqueeze(-1)).round().clamp(-8, 7)
    meant = (values.to(weight.dtype) * scales.unsqueeze(-1)).reshape(rows, columns)
    nibbles = (values.reshape(rows, -1, 8).long() + 8) << (4 * torch.arange(8))
    packed = nibbles.sum(-1)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    shape = torch.tensor([rows, columns])
    return {"weight_packed": packed, "weight_scale": scales, "weight_shape": shape}, meant


def to_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of 32 with a power of two each, two values to a byte, the first in the low bits."""
    experts, rows, columns = weight.shape
    groups = weight.float().reshape(experts, rows, columns // 32, 32)
    exponent = (groups.abs().amax(-1) / 6).log2().ceil()
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    code = (groups.unsqueeze(-1) / exponent.exp2()[..., None, None] - table).abs().argmin(-1)
    meant = (table[code] * exponent.exp2().unsqueeze(-1)).reshape(weight.shape).to(weight.dtype)
    blocks = (code[..., 0::2] + 16 * code[..., 1::2]).to(torch.uint8)
    return blocks, (exponent + 127).to(torch.uint8), meant


def test_fp8_with_partial_blocks(deepseek: Path) -> None:
    quantised, meant = quantised_pair(deepseek, to_fp8, FP8)
    stored = load_file(quantised / "model.safetensors")
    prefix = "model.layers.1"
    assert stored[f"{prefix}.self_attn.kv_a_proj_with_mqa.weight"].shape == (576, 64)
    assert stored[f"{prefix}.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 1)
    assert stored[f"{prefix}.mlp.experts.0.gate_proj.weight"].shape == (192, 64)
    assert stored[f"{prefix}.mlp.experts.0.gate_proj.weight_scale_inv"].shape == (2, 1)
    check_same_weights(quantised, meant)


def test_fp8_with_scales_of_another_grid_is_refused(deepseek: Path) -> None:
    quantised, _ = quantised_pair(deepseek, to_fp8, FP8)
    stored = load_file(quantised / "model.safetensors")
    name = "model.layers.1.mlp.experts.0.gate_proj.weight_scale_inv"
    # transformers would take blocks of 64 rows, and be silently wrong.
    save_file({**stored, name: torch.ones(3, 1)}, quantised / "model.safetensors")
    with pytest.raises(StudyError, match="does not fit") as error:
        weights_of(open_store(quantised, dtype="bfloat16"))
    assert "expected a grid of 2 x 1" in str(error.value.got)


def test_fp8_without_its_scales_is_refused(deepseek: Path) -> None:
    quantised, _ = quantised_pair(deepseek, to_fp8, FP8)
    config = json.loads((quantised / "config.json").read_text())
    stored = load_file(quantised / "model.safetensors")
    del config["quantization_config"]
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(StudyError, match="belong nowhere"):
        open_store(quantised, dtype="bfloat16")
    bare = {name: tensor for name, tensor in stored.items() if "scale_inv" not in name}
    save_file(bare, quantised / "model.safetensors")
    with pytest.raises(StudyError, match="dtype"):
        weights_of(open_store(quantised, dtype="bfloat16"))


def test_int4_pack_quantised_experts(tmp_path: Path) -> None:
    plain = zoo.save_checkpoint("deepseek_v3", tmp_path / "plain", dtype=torch.bfloat16)
    check_same_weights(*quantised_pair(plain, to_int4, INT4))


def test_mxfp4_experts(tmp_path: Path) -> None:
    plain = zoo.save_checkpoint("gpt_oss", tmp_path / "plain", dtype=torch.bfloat16)
    config, tensors = read_plain(plain)
    stored, meant = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales, value = to_mxfp4(stored.pop(name).transpose(1, 2).contiguous())
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = value.transpose(1, 2).contiguous()
    quantised = save_quantised(tmp_path / "quantised", {**config, "quantization_config": MXFP4}, stored)
    check_same_weights(quantised, save_quantised(tmp_path / "meant", config, meant))


def test_a_quantised_model_streams(deepseek: Path) -> None:
    quantised, meant = quantised_pair(deepseek, to_fp8, FP8)
    with open_store(quantised, dtype="checkpoint") as store, open_store(meant, dtype="checkpoint") as plain:
        assert store.model.dtype == torch.bfloat16
        for got, expected in zip(streamed_hidden(store), streamed_hidden(plain), strict=True):
            assert torch.allclose(got, expected, rtol=0.05, atol=0.05)


def test_kimi_k2_is_read_as_deepseek_v3(tmp_path: Path) -> None:
    """Under its own name transformers would leave every routed expert random, with a report alone."""
    checkpoint = zoo.save_checkpoint("deepseek_v3", tmp_path)
    expected = resident_hidden(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_deepseek.X", "AutoModelForCausalLM": "modeling_deepseek.X"}
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "kimi_k2", "auto_map": auto_map}))
    assert any(".experts.3." in name for name in json.loads((checkpoint / INDEX).read_text())["weight_map"])
    with open_store(checkpoint) as store:
        assert all_equal(streamed_hidden(store), expected)


def test_another_quantisation_is_refused(tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    settings = {"quant_method": "bitnet", "modules_to_not_convert": []}
    (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(StudyError, match="quantised with bitnet"):
        open_store(checkpoint)
