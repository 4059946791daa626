"""How the tensors that a quantised checkpoint stores for one weight become that weight again.

transformers' own reading has one scheme for all dense modules and one for all experts, takes the companions of a weight
by a fixed list, and leaves out of account those that a format needs besides. So the tensors of a weight are put
together here, by the scheme of its own module, before transformers sees it: what it converts are plain weights.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class StoredWeight(NamedTuple):
    """A weight of the checkpoint that is stored in parts."""

    name: str
    """Name of the weight if it were stored whole."""
    parts: frozenset[str]
    """The stored tensors by full name."""
    modules: tuple[str, ...]
    """Names of its module in the checkpoint and in the model."""
    module: nn.Module
    """A module of the class that it has where it is quantised."""


@runtime_checkable
class Undoing(Protocol):
    """One quantisation method, and how to undo it."""

    def owner(self, name: str, names: Container[str]) -> str:
        """The weight that a tensor is stored for: itself, if it is no part of another.

        Args:
            name: The tensor.
            names: All tensors of the checkpoint.
        """
        ...

    def check(self, weight: StoredWeight) -> None:
        """Check that the parts are those that the weight can be made from.

        Raises:
            StudyError: If one is missing, one is too many, or nothing says what they mean.
        """
        ...

    def undo(self, weight: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor:
        """The weight.

        Args:
            weight: What was checked.
            parts: Its parts, by full name.

        Raises:
            StudyError: If they do not fit each other.
        """
        ...


class NothingToUndo:
    """A checkpoint whose tensors are weights."""

    def owner(self, name: str, names: Container[str]) -> str:
        """The tensor itself."""
        return name

    def check(self, weight: StoredWeight) -> None:
        """Nothing to check, as there are no parts."""

    def undo(self, weight: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor:
        """The one tensor."""
        return parts[weight.name]
