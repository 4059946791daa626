"""What is taken from transformers without its promise: an upgrade that moves any of it fails here first."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPConfig, LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.mixtral.modeling_mixtral import MixtralExperts, MixtralTopKRouter
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts
from transformers.utils.output_capturing import OutputRecorder

from outlier_moe.architectures.moe_parts import find_experts
from outlier_moe.architectures.structure import find_structure
from outlier_moe.architectures.transformers_private import (
    DeclaredSource,
    class_takes_config,
    declared_sources,
    grouped_outputs,
    has_experts_interface,
    runs_grouped,
    shows_grouped_outputs,
    undivided_class_names,
)
from tests import zoo


class _Declaring(nn.Module):
    """Stands for a model that declares its outputs in every form that transformers knows."""

    can_record_outputs = {
        "hidden_states": LlamaDecoderLayer,
        "attentions": [OutputRecorder(LlamaAttention, index=2, layer_name=".self_attn."), "CrossAttention"],
        "router_logits": "Router",
    }


def test_the_sources_that_families_declare() -> None:
    llama = zoo.tiny_model("llama").get_decoder()
    assert declared_sources(llama, "hidden_states") == (DeclaredSource(LlamaDecoderLayer, 0, None),)
    assert declared_sources(llama, "attentions") == (DeclaredSource(LlamaAttention, 1, None),)
    assert declared_sources(llama, "router_logits") == ()
    mixtral = zoo.tiny_model("mixtral").get_decoder()
    assert declared_sources(mixtral, "router_logits") == (DeclaredSource(MixtralTopKRouter, 0, None),)
    llama4 = next(m for m in zoo.tiny_model("llama4_text").modules() if type(m).__name__ == "Llama4TextModel")
    assert isinstance(llama4, PreTrainedModel)
    assert declared_sources(llama4, "router_logits") == (DeclaredSource(Llama4Router, 1, None),)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("hidden_states", (DeclaredSource(LlamaDecoderLayer, 0, None),)),
        ("attentions", (DeclaredSource(LlamaAttention, 2, "self_attn"),)),
        ("router_logits", ()),
        ("unheard_of", ()),
    ],
)
def test_every_form_of_a_declaration(output: str, expected: tuple[DeclaredSource, ...]) -> None:
    owner = object.__new__(type("Model", (_Declaring, PreTrainedModel), {}))
    assert declared_sources(owner, output) == expected


def test_layers_are_declared_as_undivided() -> None:
    assert "LlamaDecoderLayer" in undivided_class_names(zoo.tiny_model("llama").get_decoder())
    assert "GPT2Block" in undivided_class_names(zoo.tiny_model("gpt2").get_decoder())


def test_auto_classes_know_their_configurations() -> None:
    assert class_takes_config(AutoModelForCausalLM, LlamaConfig())
    assert not class_takes_config(AutoModelForImageTextToText, LlamaConfig())
    assert not class_takes_config(AutoModelForCausalLM, CLIPConfig())


def test_the_experts_interface() -> None:
    mixtral = zoo.tiny_model("mixtral")
    experts = [module for module in mixtral.modules() if isinstance(module, MixtralExperts)]
    assert all(map(has_experts_interface, experts))
    for implementation, grouped in (("eager", False), ("grouped_mm", True)):
        mixtral.set_experts_implementation(implementation)
        assert all(runs_grouped(module) == grouped for module in experts)
        assert all(shows_grouped_outputs(module) == grouped for module in experts)
    apart = next(module for module in zoo.tiny_model("step3p7").modules() if isinstance(module, Step3p7Experts))
    assert not has_experts_interface(apart)
    assert not runs_grouped(apart)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "muse_spark"])
def test_the_grouped_products_can_be_listened_to(name: str) -> None:
    structure = find_structure(zoo.tiny_model(name))
    experts = find_experts(structure)[0].module
    before = dict(vars(experts))
    width = experts.get_parameter("down_proj").shape[1 if name != "gpt_oss" else 2]
    hidden, choice = torch.randn(5, width), torch.tensor([[0, 3], [3, 1], [7, 0], [1, 2], [3, 7]])
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        plain = experts(hidden, choice, torch.full((5, 2), 0.5))
        with grouped_outputs(experts, seen.append):
            heard = experts(hidden, choice, torch.full((5, 2), 0.5))
        again = experts(hidden, choice, torch.full((5, 2), 0.5))
    assert torch.equal(heard, plain)
    assert torch.equal(again, plain)
    assert len(seen) == 1
    assert dict(vars(experts)) == before
    # In the order in which the choice is sorted, and before the gates.
    by_pair = torch.empty_like(seen[0]).index_copy_(0, choice.flatten().sort().indices, seen[0])
    torch.testing.assert_close(by_pair.reshape(5, 2, width).sum(dim=1) / 2, plain)
