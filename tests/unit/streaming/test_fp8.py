"""FP8 weights and their scales, under the names and in the granularities that tools write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from outlier_moe.errors import StudyError
from outlier_moe.streaming.fp8 import Fp8Undoing
from outlier_moe.streaming.undoing import StoredWeight
from tests import zoo
from tests.streaming import open_store
from tests.unit.streaming.test_quantised import FP8, read_plain, save_quantised, weights_of

VLLM = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


def stored_fp8(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor, Tensor]:
    """The values and scales of a weight, and what they stand for."""
    largest = weight.float().abs().amax(1, keepdim=True) if granularity == "channel" else weight.float().abs().max()
    scale = largest / 448
    values = (weight.float() / scale).to(torch.float8_e4m3fn)
    return values, scale, (values.float() * scale).to(weight.dtype)


@pytest.mark.parametrize("leaf", ["weight_scale", "weight_scale_inv", "scale"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_names_and_granularities_of_tools(family: str, granularity: str, leaf: str, tmp_path: Path) -> None:
    config, tensors = read_plain(zoo.save_checkpoint(family, tmp_path / "plain", dtype=torch.bfloat16))
    stored, meant = dict(tensors), dict(tensors)
    for name in [name for name in tensors if "_proj" in name or ".experts." in name]:
        stored[name], scale, meant[name] = stored_fp8(tensors[name], granularity)
        module = name.removesuffix("weight")
        stored[f"{module}{leaf}"] = scale.squeeze(-1) if leaf == "scale" and granularity == "channel" else scale
        stored |= {f"{module}input_scale": torch.ones(1)}
    for i in range(zoo.N_LAYERS):
        stored |= {f"model.layers.{i}.self_attn.{part}_scale": torch.ones(1) for part in ("k", "v")}
    quantised = save_quantised(tmp_path / "quantised", {**config, "quantization_config": VLLM}, stored)
    plain = save_quantised(tmp_path / "meant", config, meant)
    got, expected = (weights_of(open_store(path, dtype="bfloat16")) for path in (quantised, plain))
    for name, weight in expected.items():
        assert torch.equal(got[name], weight), name


@pytest.mark.parametrize(("shape", "scales"), [
    ((4, 40, 64), (4,)), ((4, 40, 64), (4, 1, 1)), ((4, 40, 64), (4, 40, 1)), ((4, 40, 64), (4, 1, 64)),
    ((4, 130, 200), (4, 2, 2)), ((40, 64), ()),
])  # fmt: skip
def test_each_value_is_times_the_scale_of_its_place(shape: tuple[int, ...], scales: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(scales, generator=generator) + 0.5
    got = undone(values, scale)
    for place in [(0,) * len(shape), tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]:
        *before, row, column = place
        index = {
            (4,): before, (4, 1, 1): [*before, 0, 0], (4, 40, 1): [*before, row, 0], (4, 1, 64): [*before, 0, column],
            (4, 2, 2): [*before, row // 128, column // 128], (): [],
        }[scales]  # fmt: skip
        assert got[place] == values[place].float() * scale[tuple(index)]


def undone(values: Tensor, scale: Tensor) -> Tensor:
    weight = StoredWeight("x.weight", frozenset({"x.weight", "x.scale"}), ("x", "x"), nn.Linear(1, 1))
    return Fp8Undoing(FP8).undo(weight, {"x.weight": values, "x.scale": scale})


def test_four_bits_and_powers_of_two() -> None:
    """As DeepSeek V4 stores its experts: pairs of E2M1 in bytes, and an exponent for 32 values."""
    codes = torch.arange(64).reshape(1, 64) % 16
    packed = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8).view(torch.int8)
    got = undone(packed, torch.tensor([[127, 130]], dtype=torch.uint8))
    half = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([half, -half]).repeat(2)
    assert torch.equal(got, torch.cat([values, 8 * values])[None])


def test_groups_of_32_have_powers_of_two() -> None:
    """MXFP8; in groups of another format float scales may lie otherwise, so these are refused, as below."""
    values = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    exponents = torch.arange(80, dtype=torch.uint8).reshape(40, 2) + 90
    expected = values.float() * (exponents.float() - 127).exp2().repeat_interleave(32, 1)
    assert torch.equal(undone(values, exponents), expected)
    assert torch.equal(undone(values, exponents.view(torch.float8_e8m0fnu)), expected)


@pytest.mark.parametrize(("dtype", "scales"), [
    (torch.float8_e4m3fn, (64,)), (torch.float8_e4m3fn, (1, 64)), (torch.float8_e4m3fn, (3,)),
    (torch.float8_e4m3fn, (40, 2)),
    (torch.float8_e4m3fn, (2, 1)), (torch.bfloat16, ()), (torch.int32, ()),
])  # fmt: skip
def test_what_would_only_broadcast_is_refused(dtype: torch.dtype, scales: tuple[int, ...]) -> None:
    with pytest.raises(StudyError, match="does not fit"):
        undone(torch.ones(40, 64).to(dtype), torch.ones(scales))


@pytest.mark.parametrize("said", [[0, 0], [128], [128.0, 128.0], "128", {"rows": 128}, [True, 128]])
def test_blocks_without_two_sizes_are_refused_by_the_key(said: object) -> None:
    with pytest.raises(StudyError, match="size of the blocks") as error:
        Fp8Undoing({**FP8, "weight_block_size": said})
    assert error.value.key == "quantization_config.weight_block_size" and error.value.got == said


def test_two_scales_of_one_weight_are_refused(tmp_path: Path) -> None:
    config, tensors = read_plain(zoo.save_checkpoint("llama", tmp_path / "plain", dtype=torch.bfloat16))
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name], tensors[f"{name}_scale"], _ = stored_fp8(tensors[name], "tensor")
    tensors[f"{name}_scale_inv"] = torch.ones(())
    quantised = save_quantised(tmp_path / "quantised", {**config, "quantization_config": VLLM}, tensors)
    with pytest.raises(StudyError, match="not one scale"):
        open_store(quantised)


def test_a_second_scale_under_an_unknown_name_is_refused(tmp_path: Path) -> None:
    """As ModelOpt's `weight_scale_2` and `pre_quant_scale`, which change what is computed."""
    config, tensors = read_plain(zoo.save_checkpoint("llama", tmp_path / "plain", dtype=torch.bfloat16))
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name], tensors[f"{name}_scale"], _ = stored_fp8(tensors[name], "tensor")
    for extra in (f"{name}_scale_2", f"{name.removesuffix('weight')}pre_quant_scale"):
        folder = tmp_path / extra
        quantised = save_quantised(folder, {**config, "quantization_config": VLLM}, {**tensors, extra: torch.ones(1)})
        with pytest.raises(StudyError, match="belong nowhere") as error:
            open_store(quantised)
        assert error.value.key == extra
