"""The proof that a mixture computes what its dense model does: logits side by side on a frozen batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from outlier_moe.errors import StudyError
from outlier_moe.terminal.figures import plain

TOLERANCE = 1e-4
"""The largest difference of a logit, in float32, that is still called equal."""


@dataclass(frozen=True)
class Equivalence:
    """How far a mixture is from its dense model on the probe."""

    difference: tuple[float, ...]
    """For each sequence, the largest |difference| of a logit."""
    layer_difference: tuple[tuple[float, ...], ...]
    """For each sequence and layer, the largest |difference| of the residual stream behind the layer."""
    tolerance: float = TOLERANCE
    """Largest difference that counts as equal."""

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return max(self.difference)

    @property
    def passed(self) -> bool:
        """Whether no logit differs by more than the tolerance; NaN does not pass."""
        return all(value < self.tolerance for value in self.difference)

    @property
    def first_difference(self) -> tuple[int, int | None] | None:
        """The first sequence that differs and its first layer that does (None: only the logits do)."""
        for sequence, (value, layers) in enumerate(zip(self.difference, self.layer_difference, strict=True)):
            if not value < self.tolerance:
                beyond = (index for index, of_layer in enumerate(layers) if not of_layer < self.tolerance)
                return sequence, next(beyond, None)
        return None

    def as_document(self) -> dict[str, Any]:
        """The content of equivalence.json."""
        return {**asdict(self), "largest": self.largest, "passed": self.passed}

    def require(self, *, file: str) -> None:
        """Raise an error if the test did not pass.

        Raises:
            StudyError: If it has not passed; it says which sequence and layer first differs.
        """
        if self.first_difference is None:
            return
        sequence, layer = self.first_difference
        where = "the logits alone" if layer is None else f"layer {layer}"
        at = self.difference[sequence] if layer is None else self.layer_difference[sequence][layer]
        raise StudyError(
            "The mixture of experts does not compute what the dense model does.",
            file=file,
            key=f"sequence {sequence}, {where}",
            expected=f"a difference below {plain(self.tolerance, 6)}",
            got=f"{plain(at, 3)} there, and {plain(self.largest, 3)} in the logits",
            remedy="The transfer of the weights of that layer is wrong.",
        )


def compare_logits(
    dense: PreTrainedModel,
    moe: PreTrainedModel,
    probe: Int[Tensor, "sequence position"],
    *,
    tolerance: float = TOLERANCE,
) -> Equivalence:
    """Run both models over the probe, in float32."""
    dense_logits, dense_layers = _run(dense, probe)
    moe_logits, moe_layers = _run(moe, probe)
    by_layer = [_largest(a - b) for a, b in zip(dense_layers, moe_layers, strict=True)]
    return Equivalence(
        difference=tuple(_largest(dense_logits - moe_logits)),
        layer_difference=tuple(zip(*by_layer, strict=True)),
        tolerance=tolerance,
    )


def _largest(difference: Float[Tensor, "sequence position feature"]) -> list[float]:
    return difference.abs().flatten(1).amax(dim=1).tolist()


def _run(model: PreTrainedModel, probe: Tensor) -> tuple[Tensor, list[Tensor]]:
    with torch.no_grad(), _residuals(model.float().eval()) as residuals:
        return model(input_ids=probe, use_cache=False).logits, residuals


@contextmanager
def _residuals(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def note(module: object, args: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(note) for layer in model.get_submodule("model.layers").children()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
