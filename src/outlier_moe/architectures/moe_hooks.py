"""The hooks at routers and experts: every expert's own output, and nothing of the model's is changed.

Where the experts go through transformers' grouped products, their outputs are seen on the way. Other code for experts
is run a second time with each pair of a token and a chosen expert as a token of its own and a gate of one: what it then
puts out is the expert's output for that token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from outlier_moe.architectures.current_forward import begin_forward, by_position
from outlier_moe.architectures.moe_parts import Experts, Router, find_experts, find_routers
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.architectures.transformers_private import grouped_outputs, has_experts_interface, shows_grouped_outputs

Implementation = Literal["grouped_mm", "eager"]


@dataclass(frozen=True)
class ExpertOutputs:
    """Outputs of experts of one layer: one object for the routed experts, one for each shared expert.

    The tensors are the model's own, which it may go on to change: what is kept of them has to be copied.
    """

    layer: int
    """The zero-based decoder layer."""
    shared: bool
    """Whether this is a shared expert: the one choice of every token."""
    expert: Int64[Tensor, "sequence position choice"]
    """The experts chosen for each token, as the router numbers them; shared ones follow after all others."""
    gate: Float[Tensor, "sequence position choice"]
    """What each output is weighted by, or, for Llama 4, what the expert's input was weighted by. 1 for a shared expert
    without a gate. Factors that a family applies to the sum over all experts are not in it. 0 if the token was sent to
    no expert (ZAYA's skipped tokens)."""
    output: Float[Tensor, "pair feature"]
    """The expert's own output for each pair of a token and a choice: of its last matrix, with its bias and its norm if
    it has one, before the gate. Its width is that of the experts, which is not the model's where they work in a latent
    space. Rows are in the order in which the family computes them."""
    pair: Int64[Tensor, " pair"]
    """For each row of `output` its place in `expert` and `gate`, flattened."""
    router_scores: Float[Tensor, "sequence position candidate"] | None
    """What the router gives for every expert, before a choice: logits, for Gemma 4 probabilities. None if unknown."""


ObserveExperts = Callable[[ExpertOutputs], None]


def pin_experts(structure: DecoderStructure) -> Implementation | None:
    """Fix how experts are computed, so that all runs give the same numbers; returns the way, None without experts.

    Transformers' grouped products where a family goes through its interface for experts, else the family's own loop:
    in bfloat16 the two differ by as much as 0.5.
    """
    experts = [layer.module for layer in find_experts(structure).values()]
    if not experts:
        return None
    if not any(map(has_experts_interface, experts)):
        return "eager"
    structure.backbone.set_experts_implementation("grouped_mm")
    return "grouped_mm"


@contextmanager
def moe_hooks(structure: DecoderStructure, observe: ObserveExperts) -> Iterator[None]:
    """Call a function with every expert's output while the model runs.

    Forwards may run in several threads or greenlets, one forward each, as long as only one of them is inside a layer
    at a time.

    Args:
        structure: The model's decoder.
        observe: Called once per layer and forward for the routed experts and once for each shared expert.

    Raises:
        StudyError: If the experts of a layer with a router cannot be told.
    """
    routers = find_routers(structure)
    with ExitStack() as hooks:
        hooks.enter_context(structure.backbone.register_forward_pre_hook(begin_forward, with_kwargs=True))
        for layer, experts in find_experts(structure).items():
            recorder = _LayerRecorder(layer, experts, routers.get(layer), observe)
            recorder.hook(hooks)
        yield


class _LayerRecorder:
    """Puts together what the router, the experts and the shared experts of one layer show."""

    def __init__(self, layer: int, experts: Experts, router: Router | None, observe: ObserveExperts) -> None:
        self.layer = layer
        self.experts = experts
        self.router = router
        self.observe = observe
        self.routing: object = None

    def hook(self, hooks: ExitStack) -> None:
        if self.router is not None:
            hooks.enter_context(self.router.module.register_forward_hook(self._note_routing))
        module = self.experts.module
        if self.experts.form == "indexed":
            hooks.enter_context(_replaced_forward(module, self._indexed_forward(module.forward)))
        elif self.experts.form == "sorted":
            hooks.enter_context(module.get_submodule("output_linear").register_forward_hook(self._observe_sorted))
        else:
            hooks.enter_context(module.register_forward_hook(self._observe_dense))
        for index, shared in enumerate(self.experts.shared):
            recorder = _SharedRecorder(self.layer, self.experts.n_routed + index, shared.gate is not None, self.observe)
            hooks.enter_context(shared.module.register_forward_hook(recorder.note_output))
            if shared.gate is not None:
                hooks.enter_context(shared.gate.register_forward_hook(recorder.note_gate))

    def _note_routing(self, module: nn.Module, args: object, output: object) -> None:
        self.routing = output

    def _scores(self) -> Tensor | None:
        if self.router is None:
            return None
        scores = self.routing[self.router.item] if isinstance(self.routing, tuple | list) else self.routing
        assert isinstance(scores, Tensor)
        return scores

    def _indexed_forward(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        signature = inspect.signature(plain)

        def forward(*args: object, **kwargs: object) -> Tensor:
            hidden, choice, gate = signature.bind(*args, **kwargs).args
            if not shows_grouped_outputs(self.experts.module):
                self._deliver(choice, gate, self._own_outputs(plain, hidden, choice))
                return plain(hidden, choice, gate)
            seen: list[Tensor] = []
            with grouped_outputs(self.experts.module, seen.append):
                result = plain(hidden, choice, gate)
            [own] = seen
            self._deliver(choice, gate, own, pair=choice.reshape(-1).sort().indices)
            return result

        return forward

    def _own_outputs(self, plain: Callable[..., Tensor], hidden: Tensor, choice: Tensor) -> Tensor:
        n_tokens, n_choices = choice.shape
        pairs = hidden.reshape(n_tokens, -1).repeat_interleave(n_choices, dim=0)
        pair_choice = choice.reshape(-1, 1)
        pair_gate = torch.ones_like(pair_choice, dtype=hidden.dtype)
        if self.experts.n_identity:
            # LongCat's loop wants two choices at least; an identity expert with a gate of zero costs nothing.
            idle = torch.full_like(pair_choice, self.experts.n_routed - 1)
            pair_choice = torch.cat([pair_choice, idle], dim=1)
            pair_gate = torch.cat([pair_gate, torch.zeros_like(pair_gate)], dim=1)
        return plain(pairs, pair_choice, pair_gate).reshape(n_tokens * n_choices, -1)

    def _observe_sorted(self, module: nn.Module, args: object, output: Tensor) -> None:
        """JetMoE: the router gives the order of the pairs, their tokens and gates, experts' sizes, and the logits."""
        assert isinstance(self.routing, tuple)
        order, _, sorted_gate, sizes, logits = self.routing
        n_tokens = len(logits)
        numbers = torch.arange(len(sizes), device=output.device)
        sorted_expert = numbers.repeat_interleave(torch.tensor(sizes, device=output.device))
        expert, gate = (
            torch.empty_like(values).index_copy_(0, order, values).reshape(n_tokens, -1)
            for values in (sorted_expert, sorted_gate)
        )
        self._deliver(expert, gate, output, pair=order)

    def _observe_dense(self, module: nn.Module, args: object, output: Tensor) -> None:
        """Llama 4: all experts' outputs, expert after expert; the router gives scores, 0 if not chosen, and logits."""
        assert self.router is not None and isinstance(self.routing, tuple)
        scores, logits = self.routing
        choice = logits.topk(vars(self.router.module)["top_k"], dim=1).indices
        by_expert = output.reshape(self.experts.n_routed, len(logits), -1)
        own = by_expert[choice, torch.arange(len(logits), device=output.device).unsqueeze(1)]
        self._deliver(choice, scores.gather(1, choice), own.flatten(0, 1))

    def _deliver(self, choice: Tensor, gate: Tensor, own: Tensor, pair: Tensor | None = None) -> None:
        scores = self._scores()
        self.routing = None
        key = f"experts of layer {self.layer}"
        self.observe(
            ExpertOutputs(
                layer=self.layer,
                shared=False,
                expert=by_position(choice, key=key).long(),
                gate=by_position(gate, key=key),
                output=own,
                pair=torch.arange(len(own), device=own.device) if pair is None else pair,
                router_scores=None if scores is None else by_position(scores, key=key),
            )
        )


class _SharedRecorder:
    """Puts together a shared expert's output and its gate, whichever comes first."""

    def __init__(self, layer: int, number: int, gated: bool, observe: ObserveExperts) -> None:
        self.layer = layer
        self.number = number
        self.gated = gated
        self.observe = observe
        self.output: Tensor | None = None
        self.gate: Tensor | None = None

    def note_output(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.output = by_position(output, key=f"shared expert {self.number} of layer {self.layer}")
        if not self.gated:
            self.gate = torch.ones_like(self.output[..., :1])
        self._deliver()

    def note_gate(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.gate = by_position(output, key=f"gate of shared expert {self.number} of layer {self.layer}").sigmoid()
        self._deliver()

    def _deliver(self) -> None:
        if self.output is None or self.gate is None:
            return
        output, gate = self.output, self.gate
        self.output = self.gate = None
        number = torch.full(gate.shape, self.number, dtype=torch.int64, device=gate.device)
        pair = torch.arange(gate.numel(), device=gate.device)
        self.observe(ExpertOutputs(self.layer, True, number, gate, output.flatten(0, 1), pair, None))


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace a module's forward for the time of the context, then restore it."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
