"""Each module of a compressed-tensors checkpoint becomes what compressed-tensors' own decompressor makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from outlier_moe.architectures.compressed_schemes import CompressedSchemes
from outlier_moe.errors import StudyError
from outlier_moe.streaming.layer_store import REST
from tests import zoo
from tests.compressed import SCHEMES, compress, decompress, scheme
from tests.streaming import open_store

SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, head_dim=16, dtype="bfloat16"
)
DENSE = LlamaConfig(**SIZES, intermediate_size=96, num_hidden_layers=1 + len(SCHEMES) // 7)
SMALL = LlamaConfig(**SIZES, intermediate_size=96, num_hidden_layers=1)
EXPERTS = MixtralConfig(
    **SIZES, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2, num_hidden_layers=1 + len(SCHEMES) // 12
)
# The largest relative error that rounding to so many bits leaves, roughly.
ERROR = {2: 0.8, 3: 0.35, 4: 0.25, 5: 0.1, 6: 0.1, 7: 0.05, 8: 0.05}

INT4 = SCHEMES["pack int4 group"]


def plain_model(name: str) -> LlamaForCausalLM | MixtralForCausalLM:
    torch.manual_seed(0)
    made = MixtralForCausalLM(EXPERTS) if name == "experts" else LlamaForCausalLM(SMALL if name == "small" else DENSE)
    return made.bfloat16()


def modules_of(name: str, tensors: dict[str, Tensor]) -> list[str]:
    part = ".experts." if name == "experts" else "_proj.weight"
    return [tensor.removesuffix(".weight") for tensor in tensors if part in tensor]


def write(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    return directory


def quantised(directory: Path, chosen: dict[str, str]) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint whose modules are stored by schemes of their own, and what its tensors stand for."""
    config = json.loads((directory / "plain" / "config.json").read_text())
    meant = load_file(directory / "plain" / "model.safetensors")
    stored = dict(meant)
    for module, of in chosen.items():
        parts = compress(stored.pop(f"{module}.weight"), scheme(of))
        stored |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
        meant[f"{module}.weight"] = decompress(parts, scheme(of)).bfloat16()
    groups = {
        f"group_{i}": {**SCHEMES[of], "targets": [module for module in chosen if chosen[module] == of]}
        for i, of in enumerate(dict.fromkeys(chosen.values()))
    }
    section = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    return write(
        directory / "stored", {**config, "quantization_config": {**section, "ignore": ["lm_head"]}}, stored
    ), meant


class Loaded(NamedTuple):
    """A checkpoint with a scheme for each of its modules, and the weights that a store makes of it."""

    modules: tuple[str, ...]
    got: dict[str, Tensor]
    meant: dict[str, Tensor]


@pytest.fixture(scope="module", params=["dense", "experts"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    directory = tmp_path_factory.mktemp("compressed")
    modules = modules_of(request.param, published(request.param, directory / "plain"))
    assert len(modules) >= len(SCHEMES)
    chosen = dict(zip(modules, SCHEMES, strict=False))
    checkpoint, meant = quantised(directory, chosen)
    plain = write(directory / "meant", json.loads((directory / "plain" / "config.json").read_text()), meant)
    return Loaded(tuple(chosen), weights_of(checkpoint), weights_of(plain))


def published(name: str, directory: Path) -> dict[str, Tensor]:
    plain_model(name).save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    with open_store(checkpoint, dtype="bfloat16") as store:
        for portion in (REST, *range(store.n_layers)):
            store.install(portion, store.read(portion))
        return dict(store.model.state_dict())


def test_all_weights_are_those_of_their_own_decompressors(loaded: Loaded) -> None:
    assert loaded.got.keys() == loaded.meant.keys()
    for name, expected in loaded.meant.items():
        assert torch.equal(loaded.got[name], expected), name


@pytest.mark.parametrize("name", SCHEMES)
def test_a_decompressor_gives_back_what_was_compressed(name: str) -> None:
    """So that the twin is no twin of a fault: a lost scale is orders of magnitude, rounding is not."""
    how = scheme(name)
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert how.weights is not None
    back = decompress(compress(weight, how), how).float()
    error = float((back - weight.float()).norm() / weight.float().norm())
    coarse = how.weights.strategy in ("tensor", "block")
    assert error < ERROR[how.weights.num_bits] * (2 if coarse else 1)


def test_every_format_is_tried_or_refused() -> None:
    written = {name for name in BaseCompressor.registered_names() if name != "dense"}
    assert {how["format"] for how in SCHEMES.values()} == written
    for name in {form.value for form in CompressionFormat} - written - {"dense", "mixed-precision"}:
        with pytest.raises(StudyError, match=name):
            CompressedSchemes({"config_groups": {"group_0": {**INT4, "format": name, "targets": ["Linear"]}}})


def one_scheme(
    directory: Path,
    of: str = "pack int4 group",
    change: Callable[[dict[str, Tensor]], object] | None = None,
    **fields: Any,
) -> Path:
    """A dense checkpoint all of whose projections have one scheme, with tensors and the configuration changed."""
    modules = modules_of("small", published("small", directory / "plain"))
    checkpoint, _ = quantised(directory, dict.fromkeys(modules, of))
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = ["Linear"]
    config["quantization_config"] |= fields
    tensors = load_file(checkpoint / "model.safetensors")
    if change is not None:
        change(tensors)
    return write(checkpoint, config, tensors)


def refusal(checkpoint: Path) -> StudyError:
    with pytest.raises(StudyError) as error:
        weights_of(checkpoint)
    assert error.value.remedy and error.value.expected
    return error.value


QUERY = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("of", "lost"), [
    ("pack int4 group", "weight_scale"),
    ("pack int4 group", "weight_shape"),
    ("pack int4 group asymmetric", "weight_zero_point"),
    ("int-quantized int8 channel asymmetric", "weight_zero_point"),
    ("float-quantized fp8 channel", "weight_scale"),
    ("nvfp4", "weight_global_scale"),
    ("nvfp4", "weight_packed"),
    ("mxfp8", "weight"),
])  # fmt: skip
def test_a_lost_part_is_named(of: str, lost: str, tmp_path: Path) -> None:
    error = refusal(one_scheme(tmp_path, of, lambda tensors: tensors.pop(f"{QUERY}.{lost}")))
    assert QUERY in str(error.key) and (lost in str(error.expected) or "dtype" in error.problem)
    assert error.file == tmp_path / "stored" / "model.safetensors"


@pytest.mark.parametrize(("of", "part", "change"), [
    ("pack int4 group", "weight_scale", lambda scale: scale[:, :1]),
    ("pack int4 channel", "weight_scale", lambda scale: scale.T),
    ("pack int4 group", "weight_packed", lambda packed: packed.repeat(1, 2)),
    ("float-quantized fp8 block", "weight_scale", lambda scale: scale[:1]),
    ("naive-quantized fp8 tensor", "weight_scale", lambda scale: scale.repeat(64)),
    ("float-quantized fp8 channel", "weight", lambda weight: weight.bfloat16()),
    ("nvfp4", "weight_global_scale", lambda scale: scale.repeat(64)),
    ("pack int4 group asymmetric", "weight_zero_point", lambda point: point[:1]),
])  # fmt: skip
def test_parts_that_would_broadcast_or_be_cut_are_refused(
    of: str, part: str, change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    name = f"{QUERY}.{part}"
    error = refusal(one_scheme(tmp_path, of, lambda tensors: tensors.update({name: change(tensors[name])})))
    assert error.key == f"{QUERY}.weight" and error.file == tmp_path / "stored" / "model.safetensors"


@pytest.mark.parametrize(("fields", "says"), [
    ({"ignore": ["lm_head", QUERY]}, "ignored"),
    ({"format": "marlin-24"}, "marlin-24"),
    ({"format": "dense"}, "dense"),
    ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
    ({"transform_config": {"config_groups": {"u": {}}}}, "rotated"),
    ({"config_groups": {"group_0": {**INT4, "targets": ["re:.*mlp.*"]}}}, "no group"),
    ({"config_groups": {"group_0": {**INT4, "targets": ["Linear"], "input_scheme": 1}}}, "cannot read"),
])  # fmt: skip
def test_a_configuration_that_says_other_things_is_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    def without_format(fields: dict[str, Any]) -> dict[str, Any]:
        if "format" not in fields:
            return fields
        return {**fields, "config_groups": {"group_0": {**INT4, "format": None, "targets": ["Linear"]}}}

    assert says in refusal(one_scheme(tmp_path, **without_format(fields))).problem


@pytest.mark.parametrize("key", ["config_groups", "sparsity_config", "transform_config"])
def test_a_section_of_another_kind_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(StudyError, match="cannot read") as error:
        CompressedSchemes({"config_groups": {"group_0": {**INT4, "targets": ["Linear"]}}, key: ["x"]})
    assert error.value.key == f"quantization_config.{key}"


@pytest.mark.parametrize("group", [
    None, 4, {"weights": "int4"}, {"weights": [4]}, {"weights": {"num_bits": "four"}},
    {"weights": {"num_bits": 0}},
])  # fmt: skip
def test_a_group_of_another_kind_is_refused(group: Any) -> None:
    said = {**group, "targets": ["Linear"]} if isinstance(group, dict) else group
    with pytest.raises(StudyError) as error:
        CompressedSchemes({"format": "pack-quantized", "config_groups": {"group_0": said}})
    assert "quantization_config" in str(error.value.key)


@pytest.mark.parametrize("fields", [
    {"ignore": ["re:["]},
    {"config_groups": {"group_0": {**INT4, "targets": ["re:("]}}},
    {"transform_config": {"config_groups": 3}},
])  # fmt: skip
def test_patterns_and_transforms_that_are_none_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(StudyError) as error:
        CompressedSchemes({"config_groups": {"group_0": {**INT4, "targets": ["Linear"]}}, **fields})
    assert "quantization_config" in str(error.value.key) and error.value.got is not None


def test_scales_of_activations_and_of_the_cache_are_left_out(tmp_path: Path) -> None:
    """As llm-compressor exports them beside the weights."""

    def add(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_packed")]:
            module = name.removesuffix(".weight_packed")
            tensors |= {f"{module}.{part}": torch.full((1,), 7.0) for part in ("input_global_scale", "output_scale")}
        tensors |= {f"model.layers.0.self_attn.{part}": torch.full((1,), 7.0) for part in ("k_scale", "v_scale")}

    kept = {"kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    plain = weights_of(one_scheme(tmp_path / "a", "nvfp4 with inputs"))
    got = weights_of(one_scheme(tmp_path / "b", "nvfp4 with inputs", add, **kept))
    assert got.keys() == plain.keys() and all(torch.equal(got[name], plain[name]) for name in plain)


def test_columns_in_groups_by_another_order(tmp_path: Path) -> None:
    """`actorder: group`, which newer versions of compressed-tensors neither write nor read."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    group_of = torch.empty(64, dtype=torch.int32)
    group_of[order] = torch.arange(64, dtype=torch.int32) // 16
    meant: dict[str, Tensor] = {}

    def reorder(tensors: dict[str, Tensor]) -> None:
        """What is stored stays where it is; that the groups are other ones changes what it means."""
        for name in [name for name in tensors if name.endswith("weight_packed")]:
            module, columns = name.removesuffix(".weight_packed"), 8 * tensors[name].shape[1]
            group = group_of if columns == 64 else torch.arange(columns, dtype=torch.int32) // 16
            tensors[f"{module}.weight_g_idx"] = group.clone()
            codes = (tensors[name].unsqueeze(-1) >> (4 * torch.arange(8))) & 15
            values = codes.flatten(1) - 8
            meant[f"{module}.weight"] = values.bfloat16() * tensors[f"{module}.weight_scale"][:, group.long()]

    section = {**INT4, "targets": ["Linear"], "weights": {**INT4["weights"], "actorder": "group"}}
    checkpoint = one_scheme(tmp_path, "pack int4 group", reorder, config_groups={"group_0": section})
    got = weights_of(checkpoint)
    assert meant
    for name, weight in meant.items():
        assert torch.equal(got[name], weight), name


def test_names_choose_before_patterns_and_patterns_before_classes() -> None:
    of = {"Linear": "pack int8 group", "re:.*mlp.*": "mxfp8", "model.layers.1.mlp.up_proj": "nvfp4"}
    groups = {f"g{i}": {**SCHEMES[name], "targets": [target]} for i, (target, name) in enumerate(of.items())}
    schemes = CompressedSchemes({"format": "mixed-precision", "config_groups": groups, "ignore": ["re:.*k_proj"]})
    linear = torch.nn.Linear(1, 1)

    def chosen(name: str) -> str:
        found = schemes.scheme_of((name,), linear)
        assert found is not None and found.format is not None
        return str(found.format)

    assert chosen("model.layers.1.mlp.up_proj") == "nvfp4-pack-quantized"
    assert chosen("language_model.model.layers.1.mlp.up_proj") == "nvfp4-pack-quantized", "the part of another model"
    assert chosen("model.layers.2.mlp.up_proj") == "mxfp8-quantized"
    assert chosen("model.layers.1.self_attn.q_proj") == "pack-quantized"
    assert schemes.ignores(("model.layers.0.self_attn.k_proj",), linear)
    assert not schemes.ignores(("model.layers.0.self_attn.q_proj",), linear)


@pytest.mark.parametrize("family", ["llama4_text", "llama4"])
def test_experts_that_were_taken_apart_are_joined_again(family: str, tmp_path: Path) -> None:
    """Llama 4's are one tensor in the published checkpoint, and linear modules in quantised ones."""
    zoo.save_checkpoint(family, tmp_path / "plain", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    tensors = {name: x for path in (tmp_path / "plain").glob("*.safetensors") for name, x in load_file(path).items()}
    meant, stored, how = dict(tensors), dict(tensors), scheme("nvfp4")
    for name in [name for name in tensors if ".experts." in name]:
        experts = stored.pop(name).transpose(1, 2)
        back = []
        for i, expert in enumerate(experts):
            parts = {"gate_proj": expert.chunk(2)[0], "up_proj": expert.chunk(2)[1]}
            whole = []
            for part, weight in (parts if "gate_up" in name else {"down_proj": expert}).items():
                packed = compress(weight.contiguous(), how)
                whole.append(decompress(packed, how).bfloat16())
                module = f"{name.rpartition('.')[0]}.{i}.{part}"
                stored |= {f"{module}.{leaf}": tensor for leaf, tensor in packed.items()}
            back.append(torch.cat(whole))
        meant[name] = torch.stack(back).transpose(1, 2)
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {**SCHEMES["nvfp4"], "targets": ["Linear"]}},
    }
    got = weights_of(write(tmp_path / "stored", {**config, "quantization_config": section}, stored))
    expected = weights_of(write(tmp_path / "meant", config, meant))
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items() if not tensor.is_meta)
