from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from outlier_moe.architectures.moe_hooks import ExpertOutputs, moe_hooks, pin_experts
from outlier_moe.architectures.moe_parts import find_experts, find_routers
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.errors import StudyError
from tests import zoo
from tests.moe_twin import ordered_output

# Each form, the families outside transformers' interface for experts, and what is odd inside it.
ODD = ["llama4_text", "dbrx", "jetmoe", "longcat_flash", "step3p7", "nemotron_h", "inkling2_text", "gpt_oss"]
ODD += ["muse_spark", "gemma4_text+moe", "deepseek_v4", "zaya", "qwen2_moe", "mixtral"]


def run(structure: DecoderStructure, tokens: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        given = zoo.tokens() if tokens is None else tokens
        return structure.backbone(input_ids=given, use_cache=False).last_hidden_state


def record(structure: DecoderStructure, tokens: Tensor | None = None) -> list[ExpertOutputs]:
    seen: list[ExpertOutputs] = []
    with moe_hooks(structure, lambda outputs: seen.append(replace(outputs, output=outputs.output.clone()))):
        run(structure, tokens)
    return seen


def prepared(name: str, dtype: torch.dtype = torch.float32) -> DecoderStructure:
    structure = find_structure(zoo.tiny_model(name, dtype=dtype))
    pin_experts(structure)
    return structure


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    structure = prepared(name, dtype)
    before = run(structure)
    seen: list[ExpertOutputs] = []
    with moe_hooks(structure, seen.append):
        during = run(structure)
    assert seen
    assert torch.equal(before, during)
    assert torch.equal(before, run(structure))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "inkling2_text", "nemotron_h"])
def test_the_bits_are_the_same_without_the_pin_too(name: str, implementation: str) -> None:
    structure = find_structure(zoo.tiny_model(name, dtype=torch.bfloat16))
    structure.backbone.set_experts_implementation(implementation)
    before = run(structure)
    with moe_hooks(structure, lambda outputs: None):
        assert torch.equal(before, run(structure))


def expert_by_expert(experts: nn.Module, x: Tensor, number: int) -> Tensor:
    """One expert of a module in the common layout, written out."""
    gate, up = (x @ experts.get_parameter("gate_up_proj")[number].T).chunk(2, dim=-1)
    return (nn.functional.silu(gate) * up) @ experts.get_parameter("down_proj")[number].T


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "step3p7", "deepseek_v3"])
def test_each_output_is_the_experts_own(name: str) -> None:
    structure = prepared(name)
    read: dict[int, Tensor] = {}

    def note(layer: int) -> Callable[..., None]:
        return lambda module, args: read.__setitem__(layer, args[0])

    handles = [
        experts.module.register_forward_pre_hook(note(layer)) for layer, experts in find_experts(structure).items()
    ]
    seen = [outputs for outputs in record(structure) if not outputs.shared]
    for handle in handles:
        handle.remove()
    for outputs in seen:
        module = find_experts(structure)[outputs.layer].module
        for token, (numbers, own) in enumerate(
            zip(outputs.expert.flatten(0, 1).tolist(), ordered_output(outputs).flatten(0, 1), strict=True)
        ):
            for choice, number in enumerate(numbers):
                expected = expert_by_expert(module, read[outputs.layer][token], number)
                torch.testing.assert_close(own[choice], expected)


def test_a_shared_expert_has_its_own_gate() -> None:
    structure = prepared("qwen2_moe")
    layer = structure.layers[2].get_submodule("mlp")
    read: list[Tensor] = []
    handle = layer.get_submodule("shared_expert").register_forward_pre_hook(
        lambda module, args: read.append(args[0].clone())
    )
    [shared] = [outputs for outputs in record(structure) if outputs.shared and outputs.layer == 2]
    handle.remove()
    with torch.no_grad():
        own = layer.get_submodule("shared_expert")(read[0])
        gate = layer.get_submodule("shared_expert_gate")(read[0]).sigmoid()
    assert set(shared.expert.flatten().tolist()) == {zoo.N_EXPERTS}
    assert torch.equal(ordered_output(shared).flatten(0, 2), own)
    assert torch.equal(shared.gate.flatten(0, 1), gate)
    assert shared.router_scores is None


def test_a_shared_expert_without_a_gate_has_a_gate_of_one() -> None:
    shared = [outputs for outputs in record(prepared("deepseek_v3")) if outputs.shared]
    assert [outputs.layer for outputs in shared] == [2, 3, 4, 5]
    assert all(bool((outputs.gate == 1).all()) for outputs in shared)


def test_identity_experts_give_back_what_they_read() -> None:
    structure = prepared("longcat_flash")
    read: list[Tensor] = []
    handle = (
        structure.layers[0]
        .get_submodule("mlp.experts")
        .register_forward_pre_hook(lambda module, args: read.append(args[0]))
    )
    outputs = record(structure)[0]
    handle.remove()
    experts = find_experts(structure)[0]
    assert (experts.n_routed, experts.n_identity) == (12, 4)
    at = outputs.expert.flatten(0, 1) >= zoo.N_EXPERTS
    assert at.any()
    assert not at.all()
    expected = read[0].unsqueeze(1).expand(-1, 2, -1)[at]
    assert torch.equal(ordered_output(outputs).flatten(0, 1)[at], expected)


def test_skipped_tokens_have_a_gate_of_zero() -> None:
    structure = prepared("zaya")
    with torch.no_grad():
        # The last class of ZAYA's router is to skip the experts.
        structure.layers[3].get_submodule("mlp.gate").get_buffer("balancing_biases")[-1] = 10.0
    outputs = next(outputs for outputs in record(structure) if outputs.layer == 3)
    assert not outputs.gate.any()


def test_llama4_weights_what_its_experts_read() -> None:
    structure = prepared("llama4_text")
    read: list[Tensor] = []
    block = structure.layers[0].get_submodule("feed_forward")
    handle = block.register_forward_pre_hook(lambda module, args: read.append(args[0].reshape(-1, zoo.D_MODEL)))
    outputs = next(outputs for outputs in record(structure) if not outputs.shared)
    handle.remove()
    experts = block.get_submodule("experts")
    gates, numbers = outputs.gate.flatten(0, 1), outputs.expert.flatten(0, 1)
    for token in range(zoo.tokens().numel()):
        for choice, number in enumerate(numbers[token].tolist()):
            x = read[0][token] * gates[token, choice]
            gate, up = (x @ experts.get_parameter("gate_up_proj")[number]).chunk(2, dim=-1)
            expected = (up * nn.functional.silu(gate)) @ experts.get_parameter("down_proj")[number]
            torch.testing.assert_close(ordered_output(outputs).flatten(0, 1)[token, choice], expected)


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("mixtral", "grouped_mm"),
        ("kimi_k25", "grouped_mm"),
        ("dbrx", "eager"),
        ("llama4_text", "eager"),
        ("llama", None),
    ],
)
def test_the_implementation_is_pinned_and_said(name: str, implementation: str | None) -> None:
    structure = find_structure(zoo.tiny_model(name))
    if name == "mixtral":
        structure.backbone.set_experts_implementation("eager")
    assert pin_experts(structure) == implementation
    if implementation == "grouped_mm":
        assert structure.backbone.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("name", ["mixtral", "llama4_text", "jetmoe", "qwen2_moe"])
def test_hooks_are_gone_after_an_exception(name: str) -> None:
    structure = prepared(name)
    plain = run(structure)

    def fail(outputs: ExpertOutputs) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), moe_hooks(structure, fail):
        run(structure)
    modules = list(structure.backbone.modules())
    assert not any("forward" in vars(module) for module in modules)
    assert not any(module._forward_hooks for module in modules)
    assert torch.equal(run(structure), plain)


def test_a_forward_that_an_instance_had_is_given_back() -> None:
    structure = prepared("mixtral")
    experts = find_experts(structure)[1].module
    calls: list[int] = []
    plain = experts.forward

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return plain(*args)

    experts.forward = counted
    with moe_hooks(structure, lambda outputs: None):
        run(structure)
    assert calls == [1]
    assert vars(experts)["forward"] is counted


def test_a_dense_model_has_neither() -> None:
    structure = find_structure(zoo.tiny_model("llama"))
    assert find_experts(structure) == {}
    assert find_routers(structure) == {}
    assert record(structure) == []


def test_a_router_without_experts_that_can_be_told_is_refused() -> None:
    structure = prepared("mixtral")
    structure.layers[4].get_submodule("mlp").experts = nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 64))
    with pytest.raises(StudyError, match="experts of a layer cannot be told") as caught:
        find_experts(structure)
    assert caught.value.key == "model.layers.4"


def test_only_tokens_of_other_sequences_differ() -> None:
    # Each row of the outputs belongs to the sequence and position of its token.
    structure = prepared("mixtral")
    whole, alone = record(structure), record(structure, zoo.tokens()[1:])
    for both, one in zip(whole, alone, strict=True):
        assert torch.equal(both.expert[1:], one.expert)
        torch.testing.assert_close(ordered_output(both)[1:], ordered_output(one))
