"""The routers and experts of a Mixture-of-Experts model, found without a table by family.

Routers are what the model declares as the source of its router logits. Experts are told by their interface, of which
transformers has one, and three families another.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from torch import nn

from outlier_moe.architectures.layer_parts import LayerParts, find_parts
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.architectures.transformers_private import DeclaredSource, declared_sources
from outlier_moe.errors import StudyError

ROUTER_CLASS = re.compile(r"(Router|Gating)$")
SHARED_NAME = re.compile(r"shared_(experts?|mlp)")
CHOICE_ARGUMENT = re.compile(r"ind(ex|ices)$")
GATE_ARGUMENT = re.compile(r"weights?$")

Form = Literal["indexed", "dense", "sorted"]
"""How a family runs its experts. `indexed`: called with hidden states, chosen experts and gates. `dense`: every token
goes through every expert, scaled by its score first, which is zero where the expert is not chosen (Llama 4). `sorted`:
two stacks of matrices that run on the tokens sorted by expert (JetMoE)."""


@dataclass(frozen=True)
class Router:
    """What chooses the experts of a layer."""

    module: nn.Module
    """The module that gives a score for every expert."""
    item: int
    """Index of the scores in its output, if that is a tuple."""


@dataclass(frozen=True)
class SharedExpert:
    """A feed-forward part beside the routed experts that every token goes through."""

    module: nn.Module
    """What computes the expert's output."""
    gate: nn.Module | None
    """What computes the logit of its gate, if it has one."""


@dataclass(frozen=True)
class Experts:
    """The experts of a layer. They are numbered as the router numbers them, shared ones after the others."""

    module: nn.Module
    """What holds the routed experts."""
    form: Form
    """How transformers runs them."""
    n_routed: int
    """Experts that the router chooses among, identity experts included."""
    n_identity: int
    """How many of them, at the end, return their input (LongCat's zero-computation experts)."""
    shared: tuple[SharedExpert, ...]
    """The shared experts."""


def find_routers(structure: DecoderStructure) -> dict[int, Router]:
    """The router of each layer that has one."""
    declared = declared_sources(structure.backbone, "router_logits")
    routers = {}
    for index, (layer, parts) in enumerate(zip(structure.layers, find_parts(structure), strict=True)):
        router = next(_routers(layer, parts, declared), None)
        if router is not None:
            routers[index] = router
    return routers


def find_experts(structure: DecoderStructure) -> dict[int, Experts]:
    """The experts of each layer that has some.

    Raises:
        StudyError: If a layer has a router but its experts cannot be told, or are in several modules.
    """
    routers = find_routers(structure)
    experts = {}
    for index, (layer, parts) in enumerate(zip(structure.layers, find_parts(structure), strict=True)):
        found = [experts for part in parts.feed_forwards for experts in _experts(part)]
        if len(found) == 1:
            module, form = found[0]
            experts[index] = Experts(module, form, *_numbers(module), _shared_experts(layer, parts, module))
        elif found or index in routers:
            raise StudyError(
                "The experts of a layer cannot be told.",
                key=f"{structure.prefix}.{index}",
                expected="one module that holds the experts",
                got=", ".join(type(module).__name__ for module, _ in found) or "none",
                remedy="Record this model without its experts.",
            )
    return experts


def _outside(layer: nn.Module, parts: LayerParts) -> Iterator[tuple[str, nn.Module]]:
    """All modules of a layer but those inside its token mixers."""
    mixing = {id(module) for mixer in parts.mixers for module in mixer.modules()}
    return ((path, module) for path, module in layer.named_modules() if id(module) not in mixing)


def _routers(layer: nn.Module, parts: LayerParts, declared: tuple[DeclaredSource, ...]) -> Iterator[Router]:
    for path, module in _outside(layer, parts):
        # Transformers 5.17 has families that declare the whole block: what holds the experts is no router.
        if any(p.ndim == 3 for p in module.parameters()):
            continue
        for source in declared:
            # The attention of JetMoE is declared as well: its own experts are no feed-forward part.
            if isinstance(module, source.module_class) and (source.path_part or "") in f"{path}.":
                yield Router(module, source.item)
                break
        else:
            if ROUTER_CLASS.search(type(module).__name__):
                yield Router(module, 0)


def _experts(part: nn.Module) -> Iterator[tuple[nn.Module, Form]]:
    for module in part.modules():
        if _takes_choice(type(module)):
            yield module, "indexed"
        elif _has_stack(getattr(module, "output_linear", None)):
            yield module, "sorted"
        elif isinstance(getattr(module, "router", None), nn.Module) and _is_dense(getattr(module, "experts", None)):
            yield module.get_submodule("experts"), "dense"


@cache
def _takes_choice(module_class: type[nn.Module]) -> bool:
    names = list(inspect.signature(module_class.forward).parameters)[1:]
    return len(names) == 3 and bool(CHOICE_ARGUMENT.search(names[1]) and GATE_ARGUMENT.search(names[2]))


def _has_stack(module: object) -> bool:
    """Whether a module holds a stack of matrices, one for each expert."""
    return isinstance(module, nn.Module) and any(p.ndim == 3 for p in module.parameters(recurse=False))


def _is_dense(module: object) -> bool:
    return isinstance(module, nn.Module) and _has_stack(module) and not _takes_choice(type(module))


def _numbers(module: nn.Module) -> tuple[int, int]:
    """Experts that the router chooses among, and how many of them only return their input."""
    # Identity experts (LongCat) have a place in the stack of the first matrices, but none in that of the last.
    stacks = [p.shape[0] for p in module.parameters() if p.ndim == 3]
    if not stacks:
        # The matrices of all experts are one (DBRX).
        return vars(module)["num_experts"], 0
    return max(stacks), max(stacks) - min(stacks)


def _shared_experts(layer: nn.Module, parts: LayerParts, experts: nn.Module) -> tuple[SharedExpert, ...]:
    shared = []
    if any(part is experts for part in parts.feed_forwards):
        # Experts that stand in the layer itself run side by side with a dense part (Gemma 4).
        shared += [SharedExpert(part, None) for part in parts.feed_forwards if part is not experts]
    for path, module in _outside(layer, parts):
        container, _, name = path.rpartition(".")
        if SHARED_NAME.fullmatch(name) and any(p.ndim >= 2 for p in module.parameters()):
            gate = getattr(layer.get_submodule(container), f"{name}_gate", None)
            shared.append(SharedExpert(module, gate if isinstance(gate, nn.Module) else None))
    return tuple(shared)
