"""Nested values that pass between a model and its layers, taken apart into tensors and a description."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

Description = dict[str, Any]
"""What a nested value is made of, as JSON can hold it."""

PLAIN = (bool, int, float, str)


class IndescribableError(Exception):
    """A value holds an object of which nothing is known."""


def describe(value: Any, tensors: dict[str, Tensor], *, path: str = "") -> Description:
    """Take a nested value apart.

    Args:
        value: Tensors and plain values in tuples, lists and mappings.
        tensors: Gets the tensors, by their paths in the value.
        path: Where the value itself is.

    Raises:
        IndescribableError: If there is anything else in it.
    """
    if value is None or isinstance(value, PLAIN):
        return {"plain": value}
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        items = [[key, describe(item, tensors, path=f"{path}/{key}")] for key, item in value.items()]
        if all(key is None or isinstance(key, PLAIN) for key in value):
            return {"mapping": items}
    elif isinstance(value, tuple | list):
        items = [describe(item, tensors, path=f"{path}/{i}") for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise IndescribableError(f"{type(value).__name__} at {path or 'the top'}")


def rebuild(description: Description, tensor_of: Callable[[Description], Tensor]) -> Any:
    """Put a nested value together; mappings become plain dictionaries.

    Args:
        description: What `describe` gave.
        tensor_of: The tensor for a tensor's description.
    """
    if "tensor" in description:
        return tensor_of(description)
    if "mapping" in description:
        return {key: rebuild(item, tensor_of) for key, item in description["mapping"]}
    if "tuple" in description:
        return tuple(rebuild(item, tensor_of) for item in description["tuple"])
    if "list" in description:
        return [rebuild(item, tensor_of) for item in description["list"]]
    return description["plain"]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested value; objects of which nothing is known are passed over."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def mappings_in(value: Any, path: str = "") -> Iterator[tuple[str, MutableMapping[Any, Any]]]:
    """Every mapping in a nested value that can be written to, with its path."""
    if isinstance(value, Mapping):
        if isinstance(value, MutableMapping):
            yield path, value
        for key, item in value.items():
            yield from mappings_in(item, f"{path}/{key}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from mappings_in(item, f"{path}/{i}")


def dtype_of(description: Description) -> torch.dtype:
    """The dtype of a described tensor."""
    return getattr(torch, description["dtype"])
