"""How long a sequence may be: a table of positions ends, rotary positions go on but are untrained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from outlier_moe.architectures.lengths import FIELDS, Length, Positions, length_for, stated_positions
from outlier_moe.architectures.model_class import SAME_ARCHITECTURE, config_fields, meta_model, read_config

# Families whose forward pass fails behind their configuration's length although no module holds a table of it.
FIXED_FAMILIES = frozenset({"mpt", "ctrl"})
# Layers that see no further back than their window, or tell no positions by rotation.
_NEAR = frozenset(
    {"sliding_attention", "chunked_attention", "linear_attention", "mamba", "mamba2", "conv", "recurrent"}
)
_POSITION_NAMES = re.compile(r"(^|[._])(wpe|pos(ition(s|al)?)?)(?=[._]|$)|positions_embed|embed_pos|pos_enc")


def positions_of(
    config: PreTrainedConfig,
    *,
    longer_than: int = 0,
    trust_remote_code: bool = False,
    model: PreTrainedModel | None = None,
) -> Positions:
    """The positions of the model of a configuration.

    Args:
        config: The configuration.
        longer_than: A length that is of interest: a model that is made for it is not built to see whether it has a
            table.
        trust_remote_code: Whether the checkpoint's own code may run.
        model: The model itself, where it is in memory; else it is built on the meta device if need be.

    Raises:
        StudyError: If the configuration belongs to no language model.
    """
    text = config.get_text_config(decoder=True)
    stated = next((n for field in FIELDS if isinstance(n := getattr(text, field, None), int) and n > 0), None)
    if stated is None or longer_than <= stated:
        return Positions(stated, is_table=False)
    if text.model_type in FIXED_FAMILIES:
        return Positions(stated, is_table=True)
    table = _table(model or meta_model(config, torch.float32, trust_remote_code=trust_remote_code), stated)
    if table is not None:
        return Positions(table, is_table=True)
    return Positions(None if _sees_near_only(text, stated) else _scaled(text, stated), is_table=False)


def _table(model: PreTrainedModel, stated: int) -> int | None:
    """The rows of a model's table of positions; None if it has none."""
    token_embedding = model.get_input_embeddings()
    tables = [_rows(module) for name, module in model.named_modules() if _is_table(name, module, token_embedding)]
    tables += [stated for name, tensor in _others(model) if _holds_positions(name, tensor, stated)]
    return min((rows for rows in tables if rows > 0), default=None)


def _is_table(name: str, module: nn.Module, token_embedding: nn.Module) -> bool:
    # Towers have positions of their own, of patches or frames.
    is_tower = any(part in name for part in ("vision", "visual", "audio", "image"))
    is_embedding = isinstance(module, nn.Embedding) and module is not token_embedding
    return is_embedding and not is_tower and _POSITION_NAMES.search(name) is not None


def _rows(module: nn.Module) -> int:
    """Positions that a table has room for: the first rows of OPT's and RoBERTa's tables belong to no position."""
    assert isinstance(module, nn.Embedding)
    offset = getattr(module, "offset", None)
    if isinstance(offset, int):
        return module.num_embeddings - offset
    return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)


def _others(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that hold positions without being an embedding: buffers and parameters."""
    yield from model.named_buffers()
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{name}.{attribute}", value


def _holds_positions(name: str, tensor: torch.Tensor, stated: int) -> bool:
    is_mask = tensor.ndim >= 3 and tensor.shape[-2:] == (stated, stated)
    return is_mask or (stated in tensor.shape and _POSITION_NAMES.search(name) is not None)


def _scaled(text: PreTrainedConfig, stated: int) -> int:
    """The positions that rotary embeddings reach: the stated number, or the original one times the scaling factor."""
    said = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    by_kind = [kind for kind in said.values() if isinstance(kind, Mapping)] if isinstance(said, Mapping) else []
    reach = stated
    for rope in by_kind or [said]:
        kind = rope.get("rope_type") or rope.get("type")
        factor = rope.get("factor")
        if kind in (None, "default") or not isinstance(factor, int | float):
            continue
        original = rope.get("original_max_position_embeddings") or stated
        reach = max(reach, int(original * factor))
    return reach


def _sees_near_only(text: PreTrainedConfig, stated: int) -> bool:
    """Whether no layer looks further back than a trained window, so that no rotation is larger than in training."""
    window = getattr(text, "sliding_window", None) or 0
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return set(kinds) <= _NEAR and window <= stated
    return 0 < window <= stated and bool(getattr(text, "use_sliding_window", True))


def model_length(folder: Path, asked: int, *, model: str, shortens: bool, trust_remote_code: bool) -> Length:
    """The length of the sequences of the model whose config.json lies in a folder.

    Args:
        folder: The folder.
        asked: The study's length.
        model: How to name the model in a message.
        shortens: Whether the model's entry says `sequence_length: model`.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        StudyError: If the model cannot take sequences of that length, and its entry does not allow shorter ones.
    """
    keys = config_fields(folder / "config.json")
    family = keys.get("model_type")
    if family not in CONFIG_MAPPING and family not in SAME_ARCHITECTURE and not trust_remote_code:
        # Recording refuses it; its tokens may be wanted all the same.
        return length_for(asked, Positions(stated_positions(keys), is_table=False), shortens=shortens, model=model)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    positions = positions_of(config, longer_than=asked, trust_remote_code=trust_remote_code)
    return length_for(asked, positions, shortens=shortens, model=model)
