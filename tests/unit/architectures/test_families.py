"""Every family: the parts are found, the taps are what the projections read, and experts add up to their block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from outlier_moe.architectures.moe_hooks import ExpertOutputs, moe_hooks, pin_experts
from outlier_moe.architectures.moe_parts import find_experts, find_routers
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.architectures.tap_hooks import tap_hooks
from outlier_moe.definitions.taps import Tap
from outlier_moe.errors import StudyError
from tests import zoo
from tests.family_table import PAGE, Seen, row
from tests.moe_twin import ordered_output
from tests.tap_oracle import Read, merged, read_by_the_projections

N_SEQUENCES, N_POSITIONS = zoo.tokens().shape
N_TOKENS = zoo.tokens().numel()

# Families whose block does more with the experts' sum than to add the shared experts.
SCALED = {"laguna", "minimax_m3_vl", "step3p7"}
NOT_A_SUM = {
    "axk1": "norm after the sum",
    "cohere2_moe": "may average routed and shared experts",
    "gemma4_text+moe": "norms before the sum",
    "granitemoehybrid": "shared expert outside the block",
    "granitemoeshared": "shared expert outside the block",
    "muse_spark": "experts work in a latent space",
}


class Observed(NamedTuple):
    """One forward with all hooks, and what the plain definitions saw in the same."""

    structure: DecoderStructure
    taps: dict[tuple[Tap, int], Tensor]
    read: Read
    outputs: list[ExpertOutputs]
    hidden: Tensor
    plain: Any
    experts: dict[int, Tensor]
    """What the module of the experts put out."""
    blocks: dict[int, Tensor]
    """What the block around them put out."""
    chosen: dict[int, Tensor]
    """The experts that the router chose for each token."""


def _forward(structure: DecoderStructure, **options: Any) -> Any:
    with torch.no_grad():
        return structure.backbone(input_ids=zoo.tokens(), use_cache=False, **options)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def observe(name: str, dtype: torch.dtype = torch.float32) -> Observed:
    """Run a variety once plainly and once with all hooks."""
    structure = find_structure(zoo.tiny_model(name, dtype=dtype))
    pin_experts(structure)
    plain = _forward(structure, output_hidden_states=True)
    taps: dict[tuple[Tap, int], Tensor] = {}
    outputs: list[ExpertOutputs] = []

    def note_experts(seen: ExpertOutputs) -> None:
        # Llama 4 goes on to add to what its shared expert has put out.
        outputs.append(replace(seen, output=seen.output.clone()))

    whole: dict[int, Tensor] = {}
    blocks: dict[int, Tensor] = {}
    chosen: dict[int, Tensor] = {}
    handles = []

    def keep(into: dict[int, Tensor], layer: int, what: Callable[[Any], Tensor]) -> Callable[..., None]:
        return lambda module, args, output: into.__setitem__(layer, what(output).detach().clone())

    def note(tap: Tap, layer: int, x: Tensor) -> None:
        assert (tap, layer) not in taps
        taps[tap, layer] = x.clone()

    for layer, experts in find_experts(structure).items():
        handles.append(experts.module.register_forward_hook(keep(whole, layer, _first)))
        handles.append(_block(structure, layer).register_forward_hook(keep(blocks, layer, _first)))
    for layer, router in find_routers(structure).items():
        handles.append(router.module.register_forward_hook(keep(chosen, layer, _choice)))
    with (
        read_by_the_projections(structure, d_model=zoo.D_MODEL, n_tokens=N_TOKENS) as read,
        tap_hooks(structure, ("attn_in", "mlp_in", "residual"), note),
        moe_hooks(structure, note_experts),
    ):
        hidden = _forward(structure).last_hidden_state
    for handle in handles:
        handle.remove()
    return Observed(structure, taps, read, outputs, hidden, plain, whole, blocks, chosen)


def _block(structure: DecoderStructure, layer: int) -> nn.Module:
    """The module that holds the experts of a layer and what stands beside them."""
    experts = find_experts(structure)[layer]
    if experts.form == "sorted":
        return experts.module
    path = next(path for path, module in structure.layers[layer].named_modules() if module is experts.module)
    return structure.layers[layer].get_submodule(path.rpartition(".")[0])


def _choice(routing: Any) -> Tensor:
    """The experts chosen, from a router's own output; the two best logits where it does not say."""
    items = routing if isinstance(routing, tuple) else (routing,)
    for item in items:
        if isinstance(item, Tensor) and not item.is_floating_point() and item.ndim == 2:
            return item
    logits = next(item for item in reversed(items) if isinstance(item, Tensor) and item.is_floating_point())
    return logits.topk(2, dim=-1).indices


@pytest.mark.parametrize("name", zoo.ZOO)
def test_family(name: str) -> None:
    seen = observe(name)
    assert torch.equal(seen.hidden, seen.plain.last_hidden_state)
    check_taps(seen)
    check_residual(seen)
    if name in zoo.MOE:
        check_experts(seen)
        if name not in NOT_A_SUM:
            check_block(name, seen)
    else:
        assert not seen.outputs
    assert row(name, in_the_table(seen)) in PAGE.read_text().splitlines(), "run `python -m tests.family_table`"


def in_the_table(seen: Observed) -> Seen:
    """What the page of families says of a forward."""
    layers: dict[Tap, list[int]] = {"attn_in": [], "mlp_in": [], "residual": []}
    widths: dict[Tap, set[int]] = {tap: set() for tap in layers}
    for (tap, layer), x in seen.taps.items():
        layers[tap].append(layer)
        widths[tap].add(x.shape[-1])
    return Seen(seen.structure, widths, layers, seen.read)


def check_taps(seen: Observed) -> None:
    """Each tap is, bit for bit, what the projections read; sites exist where there are projections, and only there."""
    reads: dict[Tap, dict[int, list[Tensor]]] = {"attn_in": seen.read.attn_in, "mlp_in": seen.read.mlp_in}
    for tap, read in reads.items():
        sites = {layer for kind, layer in seen.taps if kind == tap}
        assert sites == {layer for layer, tensors in read.items() if tensors}
        for layer in sites:
            x = seen.taps[tap, layer]
            assert x.shape == (N_SEQUENCES, N_POSITIONS, zoo.D_MODEL)
            assert torch.equal(x.flatten(0, 1), merged(read[layer]))


def check_residual(seen: Observed) -> None:
    """Equal to the model's own hidden states after every layer but the last, which come after the final norm there."""
    n_layers = len(seen.structure.layers)
    assert {layer for tap, layer in seen.taps if tap == "residual"} == set(range(n_layers))
    states = tuple(seen.plain.hidden_states)
    # Mamba leaves the embeddings out.
    first = 0 if "Mamba" in type(seen.structure.backbone).__name__ else 1
    for layer in range(n_layers - 1):
        state = states[layer + first]
        if state.shape[:2] != (N_SEQUENCES, N_POSITIONS):
            state = state.permute(1, 2, 0, 3)
        assert torch.equal(seen.taps["residual", layer], state.flatten(2))


def check_experts(seen: Observed) -> None:
    """The choice is the router's, and gates and outputs make up what the experts put out."""
    routed = {outputs.layer: outputs for outputs in seen.outputs if not outputs.shared}
    assert set(routed) == set(find_experts(seen.structure)) == set(find_routers(seen.structure))
    for layer, outputs in routed.items():
        experts = find_experts(seen.structure)[layer]
        assert torch.equal(_sorted(outputs.expert.flatten(0, 1)), _sorted(seen.chosen[layer].long()))
        assert outputs.router_scores is not None
        assert outputs.router_scores.shape[:2] == (N_SEQUENCES, N_POSITIONS)
        if experts.form == "indexed":
            whole = (ordered_output(outputs) * outputs.gate.unsqueeze(-1)).sum(dim=2)
            torch.testing.assert_close(whole.flatten(0, 1), seen.experts[layer].reshape(N_TOKENS, -1))


def _sorted(choice: Tensor) -> Tensor:
    return choice.reshape(N_TOKENS, -1).sort(dim=1).values


def check_block(name: str, seen: Observed) -> None:
    """Routed and shared experts, gated and added, are the block's output."""
    for layer, experts in find_experts(seen.structure).items():
        block = _block(seen.structure, layer)
        mine = [outputs for outputs in seen.outputs if outputs.layer == layer]
        assert sum(outputs.shared for outputs in mine) == len(experts.shared)
        total = torch.zeros(N_TOKENS, zoo.D_MODEL)
        for outputs in mine:
            # Llama 4 weights what the experts read, JetMoE adds a bias in the end.
            gate = torch.ones_like(outputs.gate) if experts.form == "dense" else outputs.gate
            factor = vars(block)["routed_scaling_factor"] if name in SCALED and not outputs.shared else 1.0
            total += factor * (ordered_output(outputs) * gate.unsqueeze(-1)).sum(dim=2).flatten(0, 1)
        if experts.form == "sorted":
            total += block.get_parameter("bias")
        torch.testing.assert_close(total, seen.blocks[layer].reshape(N_TOKENS, -1))


@pytest.mark.parametrize("name", zoo.NOT_SUPPORTED)
def test_what_is_not_supported_says_why(name: str) -> None:
    with pytest.raises(StudyError, match="several stacks of layers"):
        find_structure(zoo.tiny_model(name))
