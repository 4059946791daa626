from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPConfig, DeepseekV3Config, LlamaConfig

from outlier_moe.architectures.model_class import meta_model, model_class_for, read_config
from outlier_moe.errors import StudyError
from tests import zoo

REMOTE = {"AutoConfig": "configuration_other.OtherConfig", "AutoModelForCausalLM": "modeling_other.Other"}


def write_config(directory: Path, **fields: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def test_a_known_family_is_read_as_it_is(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert isinstance(config, LlamaConfig)
    assert config.hidden_size == 64


def test_a_known_family_never_runs_code_from_its_checkpoint(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, model_type="llama", hidden_size=64, auto_map=REMOTE))
    assert isinstance(config, LlamaConfig)
    assert model_class_for(config) is AutoModelForCausalLM


def test_kimi_k2_becomes_deepseek_v3_for_good(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path, model_type="kimi_k2", n_routed_experts=384, auto_map=REMOTE))
    assert isinstance(config, DeepseekV3Config)
    assert config.model_type == "deepseek_v3"
    assert config.n_routed_experts == 384
    assert model_class_for(config) is AutoModelForCausalLM


@pytest.mark.parametrize(
    ("fields", "problem", "said"),
    [
        ({"model_type": "lama"}, "family is unknown", "'llama'"),
        ({}, "does not name its family", "config.json of transformers"),
        ({"model_type": "other", "auto_map": REMOTE}, "needs code", "trust_remote_code: true"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, fields: dict[str, Any], problem: str, said: str) -> None:
    with pytest.raises(StudyError, match=problem) as caught:
        read_config(write_config(tmp_path, **fields))
    assert caught.value.file == tmp_path / "config.json"
    assert said in str(caught.value)


def test_a_missing_or_broken_configuration(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="has no configuration"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StudyError, match="not JSON"):
        read_config(tmp_path)


def test_a_configuration_that_contradicts_itself(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="contradicts itself") as caught:
        read_config(write_config(tmp_path, model_type="llama", hidden_size=48, num_attention_heads=32))
    assert "not a multiple" in str(caught.value)


def test_the_text_model_comes_first_and_towers_only_where_there_is_no_other() -> None:
    assert model_class_for(zoo.tiny_config("qwen3_5_moe")) is AutoModelForCausalLM
    assert model_class_for(zoo.tiny_config("qwen3_vl_moe")) is AutoModelForImageTextToText
    assert model_class_for(zoo.tiny_config("kimi_k25")) is AutoModelForImageTextToText


def test_no_language_model() -> None:
    with pytest.raises(StudyError, match="no language model"):
        model_class_for(CLIPConfig())


def test_remote_code_wants_permission() -> None:
    config = CLIPConfig.from_dict({"auto_map": REMOTE})
    with pytest.raises(StudyError, match="needs code"):
        model_class_for(config)
    assert model_class_for(config, trust_remote_code=True) is AutoModelForCausalLM


def test_building_a_model_leaves_its_configuration_as_it_is() -> None:
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, dtype="float32")
    before = config.to_dict()
    assert meta_model(config, torch.bfloat16).dtype == torch.bfloat16
    assert config.to_dict() == before
