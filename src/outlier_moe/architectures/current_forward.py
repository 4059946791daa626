"""What hooks inside a model must know of the forward that they are in."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from jaxtyping import Shaped
from torch import Tensor, nn

from outlier_moe.errors import StudyError


@dataclass
class _Forward:
    shape: tuple[int, int] | None
    """Number of sequences and positions; None if unknown before the layers run, as for images."""
    finished: set[int] = field(default_factory=set)
    """Layers that have run."""


# Each thread and each greenlet has a context of its own, so that several forwards may be under way at once.
_current: ContextVar[_Forward | None] = ContextVar("_current", default=None)


def begin_forward(backbone: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
    """Note the shape of the tokens; a forward pre-hook of the backbone, with keyword arguments."""
    given = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args, *kwargs.values()]
    tokens = next((value for value in given if isinstance(value, Tensor)), None)
    if tokens is None:
        _current.set(None)
        return
    # An image says nothing of its patches.
    is_image = tokens.ndim == 4
    _current.set(_Forward(None if is_image else (tokens.shape[0], tokens.shape[1])))


def finish_layer(layer: int) -> bool:
    """Note that a layer has run; False if it has run before in this forward."""
    forward = _current.get()
    if forward is None:
        return True
    first = layer not in forward.finished
    forward.finished.add(layer)
    return first


def by_position(x: Tensor, *, key: str) -> Shaped[Tensor, "sequence position feature"]:
    """Activations as one vector a position, whatever form a module handles them in.

    Residual streams, before or after the positions, become features of their own, stream after stream.

    Raises:
        StudyError: If they are not one vector a position, named by `key`.
    """
    forward = _current.get()
    known = None if forward is None else forward.shape
    shape = tuple(x.shape[:2]) if known is None and x.ndim == 3 else known
    if shape is not None:
        if tuple(x.shape[:-1]) == shape:
            return x
        if x.ndim == 2 and len(x) == shape[0] * shape[1]:
            return x.reshape(*shape, x.shape[-1])
        streams_first, streams_last = tuple(x.shape[1:3]) == shape, tuple(x.shape[:2]) == shape
        if x.ndim == 4 and streams_first != streams_last:
            return (x.permute(1, 2, 0, 3) if streams_first else x).flatten(2)
    raise StudyError(
        "The activations at a tap are not one vector a position.",
        key=key,
        expected="[sequence, position, feature] or residual streams of it, for [sequence, position] = "
        + ("unknown" if shape is None else str(list(shape))),
        got=list(x.shape),
        remedy="Leave this tap out of record_outliers.taps for this model.",
    )
