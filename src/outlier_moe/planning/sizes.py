"""The sizes of a model, from its configuration alone: it is built on the meta device, where weights take no memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from outlier_moe.architectures.config_numbers import first_number, n_chosen
from outlier_moe.architectures.layer_parts import LayerParts, find_parts
from outlier_moe.architectures.model_class import meta_model
from outlier_moe.architectures.moe_parts import Experts, find_experts
from outlier_moe.architectures.quantisation import readable_quantization
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.definitions.record_options import Dtype
from outlier_moe.planning.packed_bits import PackedBits
from outlier_moe.sources.computing_dtype import stated_dtype

# Bits of one weight of a matrix, its share of the scales included: a float32 for each block of 128 x 128 (FP8), a byte
# for 32 weights (MXFP4).
FP8_BITS = 8 + 32 / 128**2
MXFP4_BITS = 4 + 8 / 32


class Portion(NamedTuple):
    """The bytes of some weights."""

    stored: int
    """Bytes as stored in the checkpoint."""
    computed: int
    """Bytes in the forward pass: dequantised, in its precision."""
    copied: int
    """Bytes of `computed` that are copied when read; the rest is mapped from the file."""


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model that a plan needs."""

    dtype: str
    """The precision of the forward pass."""
    itemsize: int
    """Bytes of one of its values."""
    n_parameters: int
    """All parameters; those of other towers (vision, audio) are among them."""
    n_working: int
    """Parameters in matrices of the decoder layers that work on one token: of the experts, the chosen ones."""
    layers: tuple[Portion, ...]
    """The decoder layers."""
    rest: Portion
    """Embeddings, final norm and head."""
    towers: Portion
    """Other towers: only a model that is spread over several cards has them in memory."""
    d_model: int
    """Width of the residual stream."""
    vocabulary: int
    """Rows of the head."""
    mixer_width: int
    """Values of a token that the matrices of the widest token mixer give."""
    feed_forward_width: int
    """The same for the widest feed-forward part; of experts, the chosen ones."""
    n_scores: int
    """Attention heads whose scores of all pairs of positions are in memory at once; 0 where they never are."""
    attention_width: int
    """Heads times their width, over which the scores are computed."""
    is_quantized: bool
    """Whether the checkpoint is."""
    has_experts: bool
    """Whether there are experts."""

    @property
    def stored_bytes(self) -> int:
        """The checkpoint."""
        return sum(portion.stored for portion in (*self.layers, self.rest, self.towers))

    @property
    def computed_bytes(self) -> int:
        """The model in memory."""
        return sum(portion.computed for portion in (*self.layers, self.rest, self.towers))


def model_sizes(
    config: PreTrainedConfig, *, dtype: Dtype = "checkpoint", trust_remote_code: bool = False
) -> ModelSizes:
    """The sizes of the model of a configuration.

    Args:
        config: The configuration, whose dtype is settled. What it says of a quantisation decides how the checkpoint is
            counted.
        dtype: The precision of the forward pass.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        StudyError: If the architecture cannot be recorded, or the quantisation of the checkpoint cannot be undone.
    """
    model = _on_meta(config, dtype, trust_remote_code=trust_remote_code)
    structure = find_structure(model)
    experts, parts = find_experts(structure), find_parts(structure)
    text = config.get_text_config(decoder=True)
    n_choices = n_chosen(text)
    storage = _Storage(config, model, stated_dtype(config) or torch.float32)
    layers = [
        storage.portion(layer.named_parameters(prefix=f"{structure.prefix}.{i}"), in_layers=True)
        for i, layer in enumerate(structure.layers)
    ]
    in_layers = {id(parameter) for layer in structure.layers for parameter in layer.parameters()}
    outside = _Outside(model, structure, in_layers)
    d_model = _embedding(model).embedding_dim
    widths = [
        _widths(layer, own, experts.get(i), n_choices, d_model)
        for i, (layer, own) in enumerate(zip(structure.layers, parts, strict=True))
    ]
    heads = first_number(text, ("num_attention_heads", "n_head")) or 0
    return ModelSizes(
        dtype=str(model.dtype).removeprefix("torch."),
        itemsize=model.dtype.itemsize,
        n_parameters=model.num_parameters(),
        n_working=sum(_n_working(layer, experts.get(i), n_choices) for i, layer in enumerate(structure.layers)),
        layers=tuple(layers),
        rest=storage.portion(outside.rest.items()),
        towers=storage.portion(outside.towers.items()),
        d_model=d_model,
        vocabulary=_embedding(model).num_embeddings,
        mixer_width=max(width.mixer for width in widths),
        feed_forward_width=max(width.feed_forward for width in widths),
        n_scores=heads if text._attn_implementation == "eager" else 0,
        attention_width=heads * (first_number(text, ("head_dim", "v_head_dim")) or text.hidden_size // max(heads, 1)),
        is_quantized=storage.is_quantized,
        has_experts=bool(experts),
    )


def _on_meta(config: PreTrainedConfig, dtype: Dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    chosen = (stated_dtype(config) or torch.float32) if dtype == "checkpoint" else getattr(torch, dtype)
    return meta_model(config, chosen, trust_remote_code=trust_remote_code)


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding


class _Outside:
    """The weights outside of decoder layers: of the text model, and of other towers."""

    def __init__(self, model: PreTrainedModel, structure: DecoderStructure, in_layers: set[int]) -> None:
        text = {id(parameter) for parameter in structure.backbone.parameters()}
        head = model.get_output_embeddings()
        text |= {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
        outside = {name: p for name, p in model.named_parameters() if id(p) not in in_layers}
        self.rest = {name: p for name, p in outside.items() if id(p) in text}
        self.towers = {name: p for name, p in outside.items() if id(p) not in text}


class _Storage:
    """How many bytes of a checkpoint a weight takes."""

    def __init__(self, config: PreTrainedConfig, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._model = model
        self._said = readable_quantization(config)
        plain = [(self._said or {}).get(key) or () for key in ("modules_to_not_convert", "ignored_layers")]
        self._plain = tuple(name.removeprefix("re:").strip(".*") for names in plain for name in names)
        self._packed = None if self._method != "compressed-tensors" else PackedBits(self._said or {})

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint is."""
        return self._said is not None

    @property
    def _method(self) -> str | None:
        return (self._said or {}).get("quant_method")

    def portion(self, parameters: Iterable[tuple[str, nn.Parameter]], *, in_layers: bool = False) -> Portion:
        """The bytes of some weights."""
        stored, computed, copied = 0.0, 0, 0
        for name, parameter in parameters:
            bits = self._bits(name, parameter, in_layers=in_layers)
            stored += parameter.numel() * (bits or 8 * self.dtype.itemsize) / 8
            computed += parameter.nbytes
            # Experts lie one by one in most checkpoints, and are joined as they come in.
            if bits or parameter.dtype != self.dtype or parameter.ndim == 3:
                copied += parameter.nbytes
        return Portion(math.ceil(stored), computed, copied)

    def _bits(self, name: str, parameter: nn.Parameter, *, in_layers: bool) -> float | None:
        """Bits of one value of a weight that is quantised."""
        # A router is small and always in full precision; so is what the configuration names.
        if self._said is None or parameter.ndim < 2 or self._is_plain(name):
            return None
        if self._packed is not None:
            return self._packed.bits(name, parameter, self._model.get_submodule(name.rpartition(".")[0]))
        if not in_layers:
            return None
        if self._method == "mxfp4":
            return MXFP4_BITS if parameter.ndim == 3 else None
        return FP8_BITS

    def _is_plain(self, name: str) -> bool:
        path = name.rpartition(".")[0]
        return path.endswith(("gate", "router")) or any(part and part in f"{path}." for part in self._plain)


class _Widths(NamedTuple):
    mixer: int
    feed_forward: int


def _widths(layer: nn.Module, parts: LayerParts, experts: Experts | None, n_choices: int, d_model: int) -> _Widths:
    """How many values of a token the matrices of a layer give: with one side d_model wide, their elements over it."""
    mixers = [_matrix_elements(part) for part in parts.mixers]
    feed_forward = (_n_working(layer, experts, n_choices) - sum(mixers)) // d_model
    if experts is not None:
        # Each pair of a token and an expert has the token's values before, and the expert's own, plain and weighted.
        feed_forward += 3 * d_model * (experts.n_routed if experts.form == "dense" else n_choices)
    return _Widths(max(mixers, default=0) // d_model, feed_forward)


def _n_working(layer: nn.Module, experts: Experts | None, n_choices: int) -> int:
    elements = _matrix_elements(layer)
    if experts is None:
        return elements
    routed = _matrix_elements(experts.module)
    n_run = experts.n_routed if experts.form == "dense" else min(n_choices, experts.n_routed)
    return elements - routed + routed * n_run // experts.n_routed


def _matrix_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)
