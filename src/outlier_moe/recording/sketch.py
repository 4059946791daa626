"""The sketch: one site's activations turned into exact counts.

Which positions of which feature reach which edge of the ladder, the peaks and where they are, and a summary of the
whole distribution. Three implementations give the same figures: compiled loops for the CPU, fused kernels for a card,
and torch operations for a card on which those do not compile.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.errors import StudyError
from outlier_moe.recording.tally import Scale, SiteSketch, UnionSketch

__all__ = ["Scale", "SiteSketch", "UnionSketch", "sketch_site", "sketch_union"]

log = logging.getLogger(__name__)

MOST_POSITIONS = np.iinfo(np.uint16).max


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None = None,
    scale: Scale = "none",
) -> SiteSketch:
    """The sketch of one site's activations.

    Args:
        x: The activations, in bfloat16, float16 or float32; float64 is rounded to float32 first.
        ladder: The edges to count at.
        union: The largest step of each element at the sites sketched so far; becomes the maximum of itself and the
            steps of this site, in place.
        scale: With "token_rms" everything, the union included, is of x divided by each token's RMS: both rounded to
            float32 before the division, the RMS from the exact squares of the finite values. A token whose RMS is 0
            stays 0.

    Raises:
        StudyError: If a sequence is longer than 65535 positions.
    """
    _check_length(x)
    if x.dtype == torch.float64:
        x = x.float()
    if x.device.type == "cuda":
        return card.sketch_site(x.detach(), ladder=ladder, union=union, scale=scale)
    from outlier_moe.recording import sketch_numba

    # A device without float64, which the sums need, shares its memory with the host: the copies are cheap.
    host_union = None if union is None else union.cpu().contiguous()
    sketch = sketch_numba.sketch_site(x.detach().cpu(), ladder=ladder, union=host_union, scale=scale)
    if union is not None and host_union is not None and host_union is not union:
        union.copy_(host_union)
    return sketch


def sketch_union(union: UInt8[Tensor, "sequence position feature"], ladder: Ladder) -> UnionSketch:
    """The counts over a union that `sketch_site` has kept.

    Raises:
        StudyError: If a sequence is longer than 65535 positions.
    """
    _check_length(union)
    if union.device.type == "cuda":
        return card.sketch_union(union)
    from outlier_moe.recording import sketch_numba

    return sketch_numba.sketch_union(union.cpu())


def _check_length(x: Tensor) -> None:
    if x.shape[1] > MOST_POSITIONS:
        raise StudyError(
            "A sequence is too long for its positions to be kept in 16 bits.",
            key="tokenize_corpus.sequence_length",
            expected=f"at most {MOST_POSITIONS} tokens",
            got=x.shape[1],
            remedy="Cut the corpus into shorter sequences.",
        )


class Card:
    """What counts on cards: fused kernels, or torch operations from the first time on that those fail."""

    def __init__(self) -> None:
        self._has_failed = False

    def sketch_site(self, x: Tensor, **options: Any) -> SiteSketch:
        """The sketch of one site."""
        return self._first_that_runs("sketch_site", x, **options)

    def sketch_union(self, union: UInt8[Tensor, "sequence position feature"]) -> UnionSketch:
        """The counts over a union."""
        return self._first_that_runs("sketch_union", union)

    def _first_that_runs(self, name: str, *arguments: Any, **options: Any) -> Any:
        from outlier_moe.recording import sketch_torch

        if not self._has_failed:
            try:
                from outlier_moe.recording import sketch_triton

                return getattr(sketch_triton, name)(*arguments, **options)
            except torch.OutOfMemoryError:
                raise
            # No Triton, one that is too old, or a card that its kernels do not fit: it raises exceptions of many kinds.
            # A union that was raised already is the same when it is raised again.
            except Exception as error:
                self._has_failed = True
                log.warning(
                    "Triton's kernels do not run here (%s: %s): counting takes torch's operations, and much longer.",
                    type(error).__name__,
                    " ".join(str(error).split())[:300],
                )
        return getattr(sketch_torch, name)(*arguments, **options)


card = Card()
