"""MoE models beside the dense models nearest to them in parameters or perplexity."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import linear_sum_assignment


class Match(NamedTuple):
    """A MoE model and a dense one."""

    moe: int
    """Index of the MoE model."""
    dense: int
    rank: int
    """1 for the nearest dense model, 2 for the next."""
    factor: float
    """The larger of the two values over the smaller."""
    is_matched: bool
    """Whether the pair takes part in the tests: each model once, and no further apart than allowed."""


def match(
    moe: Float64[np.ndarray, " moe"], dense: Float64[np.ndarray, " dense"], *, n_nearest: int, most_factor: float
) -> list[Match]:
    """The nearest dense models of each MoE model on a logarithmic scale, and the pairs that are tested.

    The tested pairs use each model once, so that one dense model does not stand in many pairs: as many as there can be
    within the allowed factor, and of those the ones with the smallest sum of distances.

    Args:
        moe: Positive values of the MoE models.
        dense: Those of the dense models.
        n_nearest: Dense models listed for each MoE model, the tested one in addition.
        most_factor: Largest factor between the values of a tested pair.
    """
    distance = np.abs(np.log(moe[:, None]) - np.log(dense[None, :]))
    allowed = distance <= math.log(most_factor) * (1 + 1e-12)
    # A pair that is not allowed costs more than all allowed ones together: one is taken only for want of others.
    cost = np.where(allowed, distance, 1 + distance.shape[0] * math.log(most_factor))
    tested = {(m, d) for m, d in zip(*linear_sum_assignment(cost), strict=True) if allowed[m, d]}
    order = np.argsort(distance, axis=1, kind="stable")
    return [
        Match(m, int(d), rank, math.exp(distance[m, d]), (m, d) in tested)
        for m in range(len(moe))
        for rank, d in enumerate(order[m], start=1)
        if rank <= n_nearest or (m, d) in tested
    ]
