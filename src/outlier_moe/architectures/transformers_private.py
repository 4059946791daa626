"""Everything used of transformers that is not public; `streaming.loading` uses the rest.

Each name taken from there is checked by `tests/unit/architectures/test_transformers_private.py`, so that an upgrade
which moves one fails there and not in a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils.output_capturing import OutputRecorder


class DeclaredSource(NamedTuple):
    """Where a model says that one of its outputs comes from."""

    module_class: type[nn.Module]
    """The class of the modules that produce it."""
    item: int
    """Which item of their output it is, if that is a tuple."""
    path_part: str | None
    """A name that must stand in the module's path, if any."""


def declared_sources(owner: PreTrainedModel, output: str) -> tuple[DeclaredSource, ...]:
    """What a model declares as the source of one of its outputs, such as `hidden_states` or `router_logits`.

    Args:
        owner: The innermost model around the modules: each answers for its own alone.
        output: The output's name.
    """
    declared = owner.can_record_outputs.get(output) or []
    entries = declared if isinstance(declared, list | tuple) else [declared]
    return tuple(source for entry in entries if (source := _source(entry, output)) is not None)


def _source(entry: OutputRecorder | type[nn.Module] | str, output: str) -> DeclaredSource | None:
    # A string names the end of a class name for modules of multimodal towers; text decoders give the class.
    if isinstance(entry, str):
        return None
    if isinstance(entry, OutputRecorder):
        if entry.target_class is None:
            return None
        return DeclaredSource(entry.target_class, entry.index, entry.layer_name and entry.layer_name.strip("."))
    return DeclaredSource(entry, 0 if output == "hidden_states" else 1, None)


def undivided_class_names(owner: PreTrainedModel) -> frozenset[str]:
    """The classes that a model declares as never to be split over devices: its decoder layers, among others."""
    return frozenset(owner._no_split_modules or ())


def class_takes_config(auto_class: type[_BaseAutoModelClass], config: PreTrainedConfig) -> bool:
    """Whether an auto class has a model for a configuration, without code from the checkpoint."""
    mapping = auto_class._model_mapping
    return mapping is not None and type(config) in mapping


def has_experts_interface(experts: nn.Module) -> bool:
    """Whether a module of experts goes through transformers' interface for them."""
    # The decorator of such modules marks each of them with how its matrices are laid out.
    return "is_transposed" in vars(experts)


@contextmanager
def experts_implementation_kept(model: PreTrainedModel) -> Iterator[None]:
    """Give a model back the way in which it computes its experts, whatever the block sets."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [(config, config._experts_implementation) for config in configs]
    try:
        yield
    finally:
        # Outer ones first: setting one sets those inside it too.
        for config, implementation in before:
            config._experts_implementation = implementation


def runs_grouped(experts: nn.Module) -> bool:
    """Whether a module of experts runs as transformers' grouped products."""
    return has_experts_interface(experts) and vars(experts)["config"]._experts_implementation == "grouped_mm"


def shows_grouped_outputs(experts: nn.Module) -> bool:
    """Whether `grouped_outputs` works for a module of experts; in transformers 5.17 it does not if there is a norm."""
    return runs_grouped(experts) and "has_post_expert_norm" in vars(experts)


@contextmanager
def grouped_outputs(experts: nn.Module, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Record the experts' outputs, before the gate, while their grouped products run.

    They have a place for a norm after the last product: who listens there computes nothing, and changes nothing. Rows
    are pairs of a token and a chosen expert, in the order in which `torch.sort` puts the flattened choice.

    Args:
        experts: A module for which `shows_grouped_outputs` holds.
        seen: Called once each time that the experts run.
    """

    def listen(output: Tensor) -> Tensor:
        seen(output)
        return output

    def listen_to_norm(module: nn.Module, args: object, output: Tensor) -> None:
        seen(output)

    if vars(experts)["has_post_expert_norm"]:
        with experts.get_submodule("post_expert_norm").register_forward_hook(listen_to_norm):
            yield
        return
    vars(experts).update(has_post_expert_norm=True, post_expert_norm=listen)
    try:
        yield
    finally:
        vars(experts)["has_post_expert_norm"] = False
        del vars(experts)["post_expert_norm"]
