"""Permutation tests: p-values that hold for any n, because nothing is assumed of the values but their exchange."""

from __future__ import annotations

import math
from itertools import permutations
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

TOLERANCE = 1e-9
"""Relative difference at which two values of a statistic count as tied: the order of a sum moves its last digits."""


class Orders(NamedTuple):
    """Orders in which n values are looked at."""

    order: Int64[np.ndarray, "permutation value"]
    """Indices of the values."""
    is_exact: bool
    """Whether they are all that there are, the original included."""


class Association(NamedTuple):
    """A rank correlation and its p-value."""

    coefficient: float
    p_value: float
    """Two-sided."""
    is_exact: bool
    """Whether it comes from all orders; else from random ones."""
    smallest_p_value: float
    """The smallest that these values could give in any order: ties, and few values, keep it up."""


def orders(n: int, *, most: int, seed: int) -> Orders:
    """All orders of n values if there are at most so many, else so many random ones."""
    if math.factorial(n) <= most:
        return Orders(np.array(list(permutations(range(n))), np.int64).reshape(-1, n), True)
    random = np.random.default_rng(seed)
    return Orders(np.argsort(random.random((most, n)), axis=1), False)


def p_value(observed: float, permuted: Float64[np.ndarray, " permutation"], *, is_exact: bool) -> float:
    """The share of orders whose statistic is at least the observed one.

    Of random orders the observed one is counted in addition, (1 + r) / (1 + n), so that the test never rejects more
    often than it says (Phipson and Smyth 2010).
    """
    reached = int((permuted >= observed - TOLERANCE * abs(observed)).sum())
    return reached / len(permuted) if is_exact else (1 + reached) / (1 + len(permuted))


def kendall(
    x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"], *, most: int = 9999, seed: int = 0
) -> Association | None:
    """Kendall's tau-b with an exact p-value; with ties, which its exact distribution does not know, by permutation.

    None if either is constant or there are fewer than two values.
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    if len(np.unique(x)) == len(x) and len(np.unique(y)) == len(y):
        tau, exact = cast(tuple[float, float], stats.kendalltau(x, y, method="exact"))
        return Association(float(tau), float(exact), True, min(1.0, 2 / math.factorial(len(x))))
    tried = orders(len(x), most=most, seed=seed)
    upper = np.triu_indices(len(x), 1)
    sign_x = np.sign(x[:, None] - x[None, :])[upper]
    sign_y = np.sign(y[:, None] - y[None, :])
    concordance = np.abs((sign_y[tried.order[:, upper[0]], tried.order[:, upper[1]]] * sign_x).sum(axis=1))
    observed = abs(float((sign_y[upper] * sign_x).sum()))
    # Where both rise, or one rises and the other falls: ties let these differ.
    ends = np.sort(y), np.sort(y)[::-1]
    rising = np.sign(np.subtract.outer(np.sort(x), np.sort(x)))[upper]
    extreme = max(abs(float((np.sign(np.subtract.outer(end, end))[upper] * rising).sum())) for end in ends)
    p, smallest = (p_value(value, concordance, is_exact=tried.is_exact) for value in (observed, extreme))
    tau, _ = cast(tuple[float, float], stats.kendalltau(x, y))
    return Association(float(tau), p, tried.is_exact, smallest)


def spearman(
    x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"], *, most: int = 9999, seed: int = 0
) -> Association | None:
    """Spearman's rho with a p-value by permutation; None if either is constant or there are fewer than two values."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    ranks = [stats.rankdata(values) for values in (x, y)]
    x_rank, y_rank = (rank - rank.mean() for rank in ranks)
    tried = orders(len(x), most=most, seed=seed)
    scale = math.sqrt(float((x_rank**2).sum() * (y_rank**2).sum()))
    rho = float(x_rank @ y_rank) / scale
    permuted = np.abs(y_rank[tried.order] @ x_rank) / scale
    ends = np.sort(y_rank), np.sort(y_rank)[::-1]
    extreme = max(abs(float(end @ np.sort(x_rank))) for end in ends) / scale
    p, smallest = (p_value(value, permuted, is_exact=tried.is_exact) for value in (abs(rho), extreme))
    return Association(rho, p, tried.is_exact, smallest)
