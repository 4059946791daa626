"""Where the decoder layers of a model are: found from what the model declares, without a table by family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from outlier_moe.architectures.transformers_private import declared_sources, undivided_class_names
from outlier_moe.errors import StudyError


@dataclass(frozen=True)
class DecoderStructure:
    """The text decoder inside a model."""

    prefix: str
    """Dotted path of the layer list in the model, such as `model.layers`."""
    layers: nn.ModuleList
    """The decoder layers, in order."""
    backbone: PreTrainedModel
    """The innermost model whose forward runs the layers; it gives the hidden states after the final norm, no logits."""


def find_structure(model: PreTrainedModel) -> DecoderStructure:
    """The decoder layers of a model and the backbone that runs them.

    A layer list is a ModuleList whose members are what the innermost model around it declares as the source of its
    hidden states, or as modules never to be split over devices. The decoder may hold one only.

    Raises:
        StudyError: If there is no such list, or several: then no one number of layers says how deep a site is.
    """
    found = list(_layer_lists(model))
    if len(found) == 1:
        return found[0]
    raise StudyError(
        "The model's decoder layers cannot be told." if not found else "The model has several stacks of layers.",
        key=type(model).__name__,
        expected="one list of decoder layers that the model declares as the source of its hidden states",
        got=", ".join(structure.prefix for structure in found) or "none",
        remedy="This family cannot be recorded; see the table of families in the documentation.",
    )


def _layer_lists(model: PreTrainedModel) -> Iterator[DecoderStructure]:
    decoder = model.get_decoder()
    start = next(path for path, module in model.named_modules() if module is decoder)
    # The model itself comes first, so that the innermost owner of a path is the last one that matches it.
    owners = [(path, module) for path, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    for path, module in decoder.named_modules(prefix=start):
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        backbone = [owner for above, owner in owners if above == "" or path.startswith(f"{above}.")][-1]
        if all(_is_decoder_layer(member, backbone) for member in module):
            yield DecoderStructure(path, module, backbone)


def _is_decoder_layer(module: nn.Module, owner: PreTrainedModel) -> bool:
    declared = tuple(source.module_class for source in declared_sources(owner, "hidden_states"))
    return isinstance(module, declared) or type(module).__name__ in undivided_class_names(owner)


def other_towers(model: PreTrainedModel, backbone: PreTrainedModel) -> Iterator[str]:
    """Paths of the models inside a model that neither hold the text decoder nor are part of it, each with a dot."""
    home = next(f"{path}." for path, module in model.named_modules() if module is backbone)
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and path and home != ".":
            if not home.startswith(f"{path}.") and not path.startswith(home):
                yield f"{path}."
