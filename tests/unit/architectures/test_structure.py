from __future__ import annotations

import pytest
from torch import nn

from outlier_moe.architectures.structure import find_structure
from outlier_moe.errors import StudyError
from tests import zoo


@pytest.mark.parametrize(
    ("name", "prefix", "backbone"),
    [
        ("gpt2", "transformer.h", "GPT2Model"),
        ("opt", "model.decoder.layers", "OPTDecoder"),
        ("llama", "model.layers", "LlamaModel"),
        ("mixtral", "model.layers", "MixtralModel"),
        ("mamba2", "backbone.layers", "Mamba2Model"),
        ("dbrx", "transformer.blocks", "DbrxModel"),
        # `get_decoder()` of this one is the whole causal model.
        ("llama4_text", "model.layers", "Llama4TextModel"),
        ("llama4@towers", "language_model.model.layers", "Llama4TextModel"),
        ("kimi_k25", "model.language_model.layers", "DeepseekV3Model"),
        ("gemma3", "model.language_model.layers", "Gemma3TextModel"),
    ],
)
def test_layers_and_backbone(name: str, prefix: str, backbone: str) -> None:
    model = zoo.tiny_model(name)
    structure = find_structure(model)
    assert structure.prefix == prefix
    assert structure.layers is model.get_submodule(prefix)
    assert len(structure.layers) == zoo.N_LAYERS
    assert type(structure.backbone).__name__ == backbone
    hidden = structure.backbone(input_ids=zoo.tokens(), use_cache=False).last_hidden_state
    assert hidden.shape == (*zoo.tokens().shape, zoo.D_MODEL)


def test_a_model_without_decoder_layers() -> None:
    model = zoo.tiny_model("llama")
    model.get_decoder().layers = nn.ModuleList()
    with pytest.raises(StudyError, match="cannot be told") as caught:
        find_structure(model)
    assert "LlamaForCausalLM" in str(caught.value)


def test_two_stacks_of_layers_are_refused() -> None:
    with pytest.raises(StudyError, match="several stacks") as caught:
        find_structure(zoo.tiny_model("hrm_text"))
    assert "model.L_module.layers, model.H_module.layers" in str(caught.value)
