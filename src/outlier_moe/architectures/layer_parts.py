"""The parts of a decoder layer: what mixes positions, and what works on each position alone.

Token mixers (attention, linear attention, state space, convolution) are told by their interface: they must be told of
the mask, the positions or the cache; a few recurrent ones, which need none of these, by name. Feed-forward parts are
told by the few names that all families of transformers use. What is neither (hyper-connections, per-layer embeddings,
low-rank side paths) has no tap.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from torch import nn

from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.errors import StudyError

MIXER_ARGUMENT = re.compile(r"mask|position|past_key_value|layer_past|cache_params|alibi")
MIXER_NAME = re.compile(r"attention|.*lstm.*")
FEED_FORWARD_NAME = re.compile(r"(shared_)?(mlps?|ffn|feed_?forward|moe|block_sparse_moe|experts|fc1)(_block)?")
FEED_FORWARD_CLASS = re.compile(r"(MLP|MoE|FFN|FeedForward|SparseMoeBlock)$", re.IGNORECASE)
# Side paths are small; a layer most of whose weights are not understood is not understood.
LARGEST_UNEXPLAINED_SHARE = 1 / 3


class LayerParts(NamedTuple):
    """The parts of one decoder layer, in the order of its modules. Either kind may be missing."""

    mixers: tuple[nn.Module, ...]
    """Modules whose projections read `attn_in`."""
    feed_forwards: tuple[nn.Module, ...]
    """Modules whose matrices, experts or router read `mlp_in`."""


def find_parts(structure: DecoderStructure) -> tuple[LayerParts, ...]:
    """The parts of every decoder layer.

    Raises:
        StudyError: If a layer has neither kind of part, or more than a third of its weights belong to none.
    """
    return tuple(_parts_of_layer(layer, f"{structure.prefix}.{index}") for index, layer in enumerate(structure.layers))


def matrix_modules(part: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of a part that hold a matrix of their own, or the part itself if it alone holds matrices.

    Convolutions along the positions are not among them: they do not combine features.
    """
    inside = [module for module in part.modules() if module is not part and _holds_matrix(module)]
    return tuple(inside) or (part,)


def _holds_matrix(module: nn.Module) -> bool:
    return not isinstance(module, nn.Conv1d) and any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _n_weights(module: nn.Module) -> int:
    """Number of weights in matrices, without norms and biases, which do not tell the kind of a part."""
    return sum(p.numel() for p in module.parameters() if p.ndim >= 2)


def _parts_of_layer(layer: nn.Module, path: str) -> LayerParts:
    mixers, feed_forwards = [], []
    for kind, part in _walk(layer):
        (mixers if kind == "mixer" else feed_forwards).append(part)
    parts = LayerParts(tuple(mixers), tuple(feed_forwards))
    explained = sum(map(_n_weights, mixers + feed_forwards)) + _direct_matrices(layer, parts)
    if explained < (1 - LARGEST_UNEXPLAINED_SHARE) * _n_weights(layer) or not (mixers or feed_forwards):
        raise StudyError(
            "The parts of a decoder layer cannot be told.",
            key=path,
            expected="modules for the token mixer and the feed-forward part that hold most of the layer's weights",
            got=", ".join(f"{name} ({type(child).__name__})" for name, child in layer.named_children()),
            remedy="Leave attn_in and mlp_in out of record_outliers.taps for this model; residual needs no parts.",
        )
    return parts


def _direct_matrices(layer: nn.Module, parts: LayerParts) -> int:
    """Weights of feed-forward matrices in the layer itself, without the first, which counts as the part."""
    if not any(isinstance(part, nn.Linear) for part in parts.feed_forwards):
        return 0
    linears = [child for child in layer.children() if isinstance(child, nn.Linear) and child not in parts.feed_forwards]
    return sum(map(_n_weights, linears))


def _walk(container: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in container.named_children():
        # The members of a list are called by the list's name.
        own_name = name if isinstance(container, nn.ModuleList) else child_name
        if _n_weights(child) == 0:
            continue
        if isinstance(child, nn.ModuleList) or _is_wrapper(child):
            yield from _walk(child, own_name)
        elif FEED_FORWARD_NAME.fullmatch(own_name):
            yield "feed_forward", child
        elif _is_mixer(type(child)) or MIXER_NAME.fullmatch(own_name):
            # A convolution alone works feature by feature: nothing in it projects.
            if any(map(_holds_matrix, child.modules())):
                yield "mixer", child
        elif FEED_FORWARD_CLASS.search(type(child).__name__):
            yield "feed_forward", child


def _is_wrapper(module: nn.Module) -> bool:
    """Whether a module takes the positions only to pass them on: it holds parts of both kinds."""
    if not _is_mixer(type(module)):
        return False
    names = [name for name, child in module.named_children() if _n_weights(child)]
    mixes = any(_is_mixer(type(child)) for child in module.children() if any(map(_holds_matrix, child.modules())))
    return mixes and any(map(FEED_FORWARD_NAME.fullmatch, names))


@cache
def _is_mixer(module_class: type[nn.Module]) -> bool:
    return any(map(MIXER_ARGUMENT.search, inspect.signature(module_class.forward).parameters))
