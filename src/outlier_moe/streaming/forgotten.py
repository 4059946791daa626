"""Re-entering a forward in the middle: finished layers return tensors without values.

The model's own code runs again up to the first layer that is not finished. What it computes from forgotten values is
forgotten too; what that layer is called with was stored and takes the place of the forgotten. Whatever is forgotten
beyond that was not stored, and an attempt to use it is an error, never a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.streaming.call_arguments import Description, describe, dtype_of, mappings_in, rebuild, tensors_in
from outlier_moe.streaming.lockstep import LayerCall

# Where the arguments by name are in the pair of both kinds.
KEYWORDS = "/1"


class CannotResumeError(Exception):
    """The model needs something of the finished layers that was not stored."""


class Forgotten(Tensor):
    """A tensor with a shape, dtype and device but without values."""

    @staticmethod
    def like(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Forgotten:
        """A forgotten tensor of a shape."""
        return torch.Tensor._make_wrapper_subclass(Forgotten, list(shape), dtype=dtype, device=device)

    def tolist(self) -> Any:
        """There are no values to list."""
        raise CannotResumeError("the model lists values that are forgotten")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute the shapes of what follows from forgotten values."""
        kwargs = dict(kwargs or {})
        device = next(tensor.device for tensor in tensors_in((args, kwargs)) if isinstance(tensor, Forgotten))
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if _is_written(argument) and isinstance(value, Tensor) and not isinstance(value, Forgotten):
                raise CannotResumeError(f"{func} writes what is forgotten into a tensor")
        on_meta = {**kwargs, "device": "meta"} if kwargs.get("device") is not None else kwargs
        try:
            result = func(*tree_map_only(Tensor, _shape_only, args), **tree_map_only(Tensor, _shape_only, on_meta))
        except (NotImplementedError, RuntimeError):
            # What the shapes alone do not settle.
            raise CannotResumeError(f"{func} needs values that are forgotten") from None
        if _is_written(func._schema.arguments[0]):
            return args[0]
        if any(not isinstance(value, Tensor | None) for value in (result if isinstance(result, tuple) else (result,))):
            raise CannotResumeError(f"{func} needs values that are forgotten")
        place = torch.device(kwargs.get("device") or device)
        return tree_map_only(
            Tensor, lambda tensor: Forgotten.like(tensor.shape, dtype=tensor.dtype, device=place), result
        )


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _shape_only(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _FinishedLayer(nn.Module):
    """Replaces a finished layer: has its attributes, and returns its former outputs without values."""

    def __init__(self, layer: nn.Module, answer: Callable[[], Any]) -> None:
        super().__init__()
        # Not as a submodule, under a name that no layer has.
        self.__dict__["_finished"] = layer
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_finished"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer()


@contextmanager
def finished_layers(
    structure: DecoderStructure, outputs: Callable[[int], Description], n_finished: int, device: torch.device
) -> Iterator[None]:
    """Let forwards pass the first layers without running them.

    Args:
        structure: The model's decoder.
        outputs: What a layer has given in the forward that runs.
        n_finished: How many layers are finished.
        device: Where their outputs were.
    """

    def forget(description: Description) -> Tensor:
        return Forgotten.like(description["shape"], dtype=dtype_of(description), device=device)

    layers = list(structure.layers)
    try:
        for index in range(n_finished):
            structure.layers[index] = _FinishedLayer(layers[index], lambda i=index: rebuild(outputs(i), forget))
        yield
    finally:
        for index in range(n_finished):
            structure.layers[index] = layers[index]


def remember(call: LayerCall, description: Description, stored: Mapping[str, Tensor]) -> None:
    """Replace forgotten tensors by stored values in a layer's arguments.

    The tensors are replaced in place, so that the model sees the values wherever it holds on to them.

    Raises:
        CannotResumeError: If the call is of another kind than the one that was stored.
    """
    arguments = (call.args, call.kwargs)
    device = next((tensor.device for tensor in tensors_in(arguments)), torch.device("cpu"))
    _refill_mappings(arguments, description, stored, device)
    found: dict[str, Tensor] = {}
    if _kind(describe(arguments, found)) != _kind(description):
        raise CannotResumeError("the first layer to run is called in another way than before")
    for path, tensor in found.items():
        if isinstance(tensor, Forgotten):
            try:
                torch.utils.swap_tensors(tensor, stored[path].to(device, copy=True))
            except RuntimeError as error:
                raise CannotResumeError(f"{path} is held on to in parts ({error})") from None


def _refill_mappings(
    arguments: Any, description: Description, stored: Mapping[str, Tensor], device: torch.device
) -> None:
    """Fill mappings into which the finished layers had put something for later ones."""
    contents = dict(_described_mappings(description))
    for path, mapping in list(mappings_in(arguments)):
        if path == KEYWORDS:
            continue
        for key, item in contents.get(path, []):
            if key not in mapping:
                mapping[key] = rebuild(item, lambda tensor: stored[tensor["tensor"]].to(device, copy=True))


def _described_mappings(description: Description, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    if "mapping" in description:
        yield path, description["mapping"]
        for key, item in description["mapping"]:
            yield from _described_mappings(item, f"{path}/{key}")
    for i, item in enumerate(description.get("tuple", description.get("list", []))):
        yield from _described_mappings(item, f"{path}/{i}")


def _kind(description: Description) -> Description:
    """A description in which the order of mappings does not matter."""
    if "mapping" in description:
        return {
            "mapping": sorted(((str(key), _kind(item)) for key, item in description["mapping"]), key=lambda i: i[0])
        }
    for sequence in ("tuple", "list"):
        if sequence in description:
            return {sequence: [_kind(item) for item in description[sequence]]}
    return description


def check_remembered(call: LayerCall | None) -> None:
    """Refuse a call with a forgotten tensor.

    Raises:
        CannotResumeError: If there is one.
    """
    if call is not None and any(isinstance(tensor, Forgotten) for tensor in tensors_in((call.args, call.kwargs))):
        raise CannotResumeError(f"layer {call.layer} needs more of the finished layers than was stored")
