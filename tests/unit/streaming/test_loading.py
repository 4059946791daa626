"""What `streaming.loading` takes from transformers is there and does what is asked of it: an upgrade fails here."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, core_model_loading
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers.auto import get_hf_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging as transformers_logging
from transformers.utils.loading_report import LoadStateDictInfo

from outlier_moe.architectures.model_class import read_config
from outlier_moe.sources.safetensors_header import read_header
from outlier_moe.streaming.loading import Placement, Skeleton
from outlier_moe.streaming.safetensors_files import read_tensors
from outlier_moe.streaming.stored_tensors import CheckpointTensor
from tests import zoo
from tests.streaming import CPU


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_methods_of_models_take_what_they_are_given() -> None:
    assert parameters(PreTrainedModel._move_missing_keys_from_meta_to_device)[1:] == [
        *("missing_keys", "device_map", "device_mesh", "hf_quantizer"),
    ]
    assert parameters(PreTrainedModel._initialize_missing_keys)[1:] == ["is_quantized"]
    assert parameters(PreTrainedModel._adjust_missing_and_unexpected_keys)[1:] == ["loading_info"]
    assert parameters(PreTrainedModel._get_dtype_plan)[1:] == ["dtype"]
    assert parameters(PreTrainedModel.tie_weights)[1:] == ["missing_keys", "recompute_mapping"]


def test_the_conversion_takes_what_it_is_given() -> None:
    assert parameters(core_model_loading.rename_source_key)[:5] == [
        *("source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict"),
    ]
    assert parameters(core_model_loading.convert_and_load_state_dict_in_model)[:3] == [
        *("model", "state_dict", "load_config"),
    ]
    assert parameters(get_hf_quantizer)[:5] == [
        *("config", "quantization_config", "device_map", "weights_only", "user_agent"),
    ]
    assert {"device_map", "dtype", "dtype_plan", "hf_quantizer", "weight_mapping"} <= {*parameters(LoadStateDictConfig)}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys", "conversion_errors", "error_msgs"} <= {
        *parameters(LoadStateDictInfo)
    }
    assert callable(HfQuantizer.get_load_operations) and callable(HfQuantizer.preprocess_model)


def test_declared_exceptions_are_applied_in_place(tmp_path: Path) -> None:
    skeleton = _skeleton("llama", tmp_path)
    found = skeleton.discrepancies(
        {
            **{name: (name,) for name in skeleton.weights if name != "lm_head.weight"},
            "model.layers.0.self_attn.rotary_emb.inv_freq": ("model.layers.0.self_attn.rotary_emb.inv_freq",),
            "stray": ("stray",),
        }
    )
    assert found.missing == ("lm_head.weight",)
    assert found.unexpected == ("stray",)


def _skeleton(name: str, directory: Path) -> Skeleton:
    zoo.save_checkpoint(name, directory)
    return Skeleton(read_config(directory), Placement(torch.float32, CPU))


def test_a_skeleton_has_no_weights_but_its_tables(tmp_path: Path) -> None:
    skeleton = _skeleton("llama", tmp_path)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    plain = zoo.tiny_model("llama")
    expected = dict(plain.named_buffers())
    assert expected
    for name, table in skeleton.model.named_buffers():
        assert torch.equal(table, expected[name])


def test_the_conversion_uses_no_threads_and_frees_what_it_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton = _skeleton("mixtral", tmp_path)

    def no_threads(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pool of threads was made")

    monkeypatch.setattr(core_model_loading, "ThreadPoolExecutor", no_threads)
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)
    raw = {}
    for shard in sorted(tmp_path.glob("*.safetensors")):
        header = read_header(shard)
        for name, tensor in read_tensors(shard, header, header).items():
            raw[name] = CheckpointTensor(tensor, header[name].dtype)
    bars = transformers_logging.is_progress_bar_enabled()
    skeleton.install(raw)
    assert all(tensor._tensor is None for tensor in raw.values())
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    assert transformers_logging.is_progress_bar_enabled() == bars
    expected = zoo.tiny_model("mixtral").state_dict()
    for name, tensor in skeleton.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("name", "stored", "targets"), [
    ("mixtral", "model.layers.2.block_sparse_moe.experts.1.w3.weight", ("model.layers.2.mlp.experts.gate_up_proj",)),
    ("llama", "layers.1.mlp.up_proj.weight", ("model.layers.1.mlp.up_proj.weight",)),
    ("phi3", "model.layers.0.self_attn.qkv_proj.weight", ("model.layers.0.self_attn.qkv_proj.weight",)),
])  # fmt: skip
def test_names_lead_to_weights(name: str, stored: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    assert _skeleton(name, tmp_path).targets([stored]) == {stored: targets}
