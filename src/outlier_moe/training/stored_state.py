"""Nested state (an optimiser's, say) as safetensors and JSON, from which reading runs no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlier_moe.errors import StudyError
from outlier_moe.tables.whole_outputs import whole_file


def save_state(state: object, path: Path) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, texts and None: `path`.json and `path`.safetensors.

    Raises:
        StudyError: If something else is among them.
    """
    tensors: dict[str, Tensor] = {}
    described = _described(state, tensors, "")
    with whole_file(path.with_suffix(".safetensors")) as partial:
        save_file(tensors, partial)
    with whole_file(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(described), encoding="utf-8")


def load_state(path: Path) -> Any:
    """What `save_state` wrote, tensors on the CPU.

    Raises:
        StudyError: If a file is missing or damaged.
    """
    try:
        tensors = load_file(path.with_suffix(".safetensors"))
        return _restored(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), tensors)
    # safetensors has an exception of its own for a damaged header, which derives from nothing else.
    except Exception as error:
        raise StudyError(
            "A stored state cannot be read.",
            file=path,
            got=f"{type(error).__name__}: {error}",
            remedy="Remove its folder; training starts from the one before, or anew.",
        ) from error


def _described(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    match value:
        case Tensor():
            name = place or "value"
            # Column by column in memory, as eigenvectors are: in another order products would be rounded otherwise.
            by_column = value.ndim == 2 and not value.is_contiguous() and value.mT.is_contiguous()
            # A copy: what shares memory with another tensor would be refused.
            tensors[name] = (value.mT if by_column else value).detach().to("cpu", copy=True).contiguous()
            return {"tensor": name, "by_column": True} if by_column else {"tensor": name}
        case dict():
            return {"dict": [[key, _described(item, tensors, f"{place}/{key}")] for key, item in value.items()]}
        case list() | tuple():
            items = [_described(item, tensors, f"{place}/{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        case None | bool() | int() | float() | str():
            return value
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
    raise StudyError(
        "A state holds something that has no safe form on disk.",
        key=place,
        expected="tensors, numbers, texts, None, and dicts, lists and tuples of them",
        got=type(value).__name__,
    )


def _restored(described: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(described, list):
        return [_restored(item, tensors) for item in described]
    if not isinstance(described, dict):
        return described
    kind, content = next(iter(described.items()))
    match kind:
        case "tensor":
            return tensors[content].mT if described.get("by_column") else tensors[content]
        case "dict":
            return {key: _restored(item, tensors) for key, item in content}
        case "tuple":
            return tuple(_restored(item, tensors) for item in content)
        case "dtype":
            return getattr(torch, content)
    raise ValueError(f"'{kind}' is no kind of state")
