from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from outlier_moe.architectures.layer_parts import find_parts, matrix_modules
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.errors import StudyError
from tests import zoo


def parts_of(name: str) -> list[tuple[list[str], list[str]]]:
    """The class names of the mixers and of the feed-forward parts of each layer."""
    return [
        ([type(part).__name__ for part in parts.mixers], [type(part).__name__ for part in parts.feed_forwards])
        for parts in find_parts(find_structure(zoo.tiny_model(name)))
    ]


@pytest.mark.parametrize(
    ("name", "mixers", "feed_forwards"),
    [
        ("llama", ["LlamaAttention"], ["LlamaMLP"]),
        ("gpt2", ["GPT2Attention"], ["GPT2MLP"]),
        ("opt", ["OPTAttention"], ["Linear"]),
        ("mamba2", ["Mamba2Mixer"], []),
        ("dbrx", ["DbrxNormAttentionNorm"], ["DbrxFFN"]),
        ("jetmoe", ["JetMoeAttention"], ["JetMoeMoE"]),
        ("falcon_h1", ["FalconH1Mixer", "FalconH1Attention"], ["FalconH1MLP"]),
        ("longcat_flash", ["LongcatFlashMLA"] * 2, ["LongcatFlashMoE", "LongcatFlashMLP", "LongcatFlashMLP"]),
        ("gemma4_text+moe", ["Gemma4TextAttention"], ["Gemma4TextMLP", "Gemma4TextExperts"]),
        # Hyper-connections, per-layer embeddings and gated norms are no parts, nor is a convolution alone.
        ("gemma3n_text", ["Gemma3nTextAttention"], ["Gemma3nTextMLP"]),
        ("deepseek_v4", ["DeepseekV4Attention"], ["DeepseekV4SparseMoeBlock"]),
        ("inkling2_text", ["Inkling2SlidingAttention"], ["Inkling2SparseMoeBlock"]),
    ],
)
def test_parts_of_the_first_layer(name: str, mixers: list[str], feed_forwards: list[str]) -> None:
    assert parts_of(name)[0] == (mixers, feed_forwards)


def test_a_layer_may_hold_one_part_only() -> None:
    assert parts_of("nemotron_h")[:4] == [
        (["NemotronHMamba2Mixer"], []),
        ([], ["NemotronHMoE"]),
        (["NemotronHAttention"], []),
        ([], ["NemotronHMLP"]),
    ]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.q_proj(hidden_states)


class _Perceptron(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up_proj = nn.Linear(8, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.up_proj(hidden_states)


class _Wrapper(nn.Module):
    """Is told of the mask only to pass it on."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = _Attention()
        self.mlp = _Perceptron()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.mlp(self.self_attn(hidden_states, attention_mask=attention_mask))


def structure_of(**children: nn.Module) -> DecoderStructure:
    layer = nn.Module()
    for name, child in children.items():
        layer.add_module(name, child)
    backbone = zoo.tiny_model("llama").get_decoder()
    return DecoderStructure("model.layers", nn.ModuleList([layer]), backbone)


def test_a_wrapper_is_looked_into() -> None:
    wrapper = _Wrapper()
    [parts] = find_parts(structure_of(block=wrapper))
    assert parts.mixers == (wrapper.self_attn,)
    assert parts.feed_forwards == (wrapper.mlp,)


def test_weights_that_belong_to_no_part_are_refused_if_they_are_many() -> None:
    small = structure_of(self_attn=_Attention(), mlp=_Perceptron(), side=_Perceptron(4))
    assert len(find_parts(small)) == 1
    with pytest.raises(StudyError, match="cannot be told") as caught:
        find_parts(structure_of(self_attn=_Attention(), mlp=_Perceptron(), side=_Perceptron(24)))
    assert caught.value.key == "model.layers.0"
    assert "side (_Perceptron)" in str(caught.value)


def test_a_layer_without_parts_is_refused() -> None:
    with pytest.raises(StudyError, match="cannot be told"):
        find_parts(structure_of(norm=nn.LayerNorm(8)))


def test_matrices_of_a_part() -> None:
    attention = _Attention()
    assert matrix_modules(attention) == (attention.q_proj,)
    assert matrix_modules(attention.q_proj) == (attention.q_proj,)
    attention.add_module("conv", nn.Conv1d(8, 8, 3, groups=8))
    attention.register_parameter("decay", nn.Parameter(torch.zeros(8, 4)))
    assert matrix_modules(attention) == (attention.q_proj,)
