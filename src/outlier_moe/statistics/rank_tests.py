"""Rank tests of few models with what their size means: an effect, its interval, and the smallest p that n allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float64
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtri

from outlier_moe.statistics.permutations import TOLERANCE, Association, kendall, orders, p_value, spearman

Sample = Float64[np.ndarray, " _model"]

MOST_ORDERS = 9999
"""Random arrangements tried where there are more than so many."""


class RankTest(NamedTuple):
    """A test and its effect; None where it does not exist."""

    effect: float | None = None
    low: float | None = None
    high: float | None = None
    """Interval of the effect."""
    p_value: float | None = None
    """Two-sided."""
    is_exact: bool = False
    """Whether all arrangements were counted."""
    smallest_p_value: float | None = None
    """The smallest that so many models can give."""
    reason: str | None = None
    """Why there is no test."""


def unpaired(a: Sample, b: Sample, *, confidence_level: float = 0.95, seed: int = 0) -> RankTest:
    """Whether a's values are larger than b's: Mann and Whitney's test, effect Cliff's delta.

    The effect is P(a > b) - P(a < b), from -1 to 1.
    """
    if min(len(a), len(b)) < 2:
        return RankTest(reason=f"{len(a)} of one kind against {len(b)} of the other: at least two of each are needed")
    has_ties = len(np.unique(np.concatenate([a, b]))) < len(a) + len(b)
    smallest = 2 / math.comb(len(a) + len(b), len(a))
    by_permutation = stats.PermutationMethod(n_resamples=MOST_ORDERS, rng=np.random.default_rng(seed))
    method: Any = by_permutation if has_ties else "exact"
    u, p = _pair(stats.mannwhitneyu(a, b, method=method))
    delta = 2 * u / (len(a) * len(b)) - 1
    low, high = _delta_interval(delta, len(a), len(b), confidence_level)
    is_exact = not has_ties or math.comb(len(a) + len(b), len(a)) <= MOST_ORDERS
    return RankTest(delta, low, high, p, is_exact, min(smallest, 1.0))


def _delta_interval(delta: float, n_a: int, n_b: int, confidence_level: float) -> tuple[float, float]:
    """Newcombe's score interval (2006, Statistics in Medicine 25:559, method 5), which holds up to an effect of 1."""
    z = -float(ndtri((1 - confidence_level) / 2))
    found, half = (delta + 1) / 2, (n_a + n_b) / 2 - 1

    def excess(chance: float) -> float:
        shape = 1 + half * ((1 - chance) / (2 - chance) + chance / (1 + chance))
        return (found - chance) ** 2 - z**2 * chance * (1 - chance) * shape / (n_a * n_b)

    # A hair away from what was found: where that is 0 or 1 it is a root itself.
    low = 0.0 if found <= 0 else cast(float, brentq(excess, 0.0, found - 1e-12))
    high = 1.0 if found >= 1 else cast(float, brentq(excess, found + 1e-12, 1.0))
    return 2 * low - 1, 2 * high - 1


def paired(differences: Sample, *, confidence_level: float = 0.95, seed: int = 0) -> RankTest:
    """Whether differences are larger than 0: Wilcoxon's signed ranks (Pratt's for zeros), effect the pairs' delta.

    The effect is the share of pairs above 0 less the share below; its interval is Clopper and Pearson's for the pairs
    that differ, the others being taken as they are.
    """
    n = len(differences)
    if n < 2:
        return RankTest(reason=f"{n} pair{'' if n == 1 else 's'}: at least two are needed")
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    if not above + below:
        return RankTest(effect=0.0, reason="no pair differs")
    by_permutation = stats.PermutationMethod(n_resamples=MOST_ORDERS, rng=np.random.default_rng(seed))
    ranks = stats.rankdata(np.abs(differences))
    exact = len(np.unique(ranks)) == n and above + below == n
    method: Any = "exact" if exact else by_permutation
    _, p = _pair(stats.wilcoxon(differences, zero_method="pratt", method=method))
    share = stats.binomtest(above, above + below).proportion_ci(confidence_level=confidence_level, method="exact")
    differing = (above + below) / n
    low, high = ((2 * float(bound) - 1) * differing for bound in (share.low, share.high))
    is_exact = exact or 2**n <= MOST_ORDERS
    return RankTest((above - below) / n, low, high, p, is_exact, 2 / 2 ** (above + below))


def _pair(result: object) -> tuple[float, float]:
    statistic, p = cast(tuple[float, float], result)
    return float(statistic), float(p)


def correlated(x: Sample, y: Sample, *, kind: str, confidence_level: float = 0.95, seed: int = 0) -> RankTest:
    """Whether y goes with x: Kendall's tau or Spearman's rho, which is the effect.

    The interval is Fieller, Hartley and Pearson's (1957): Fisher's z with a variance of 0.437 / (n - 4) for tau and
    1.06 / (n - 3) for rho.
    """
    n = len(x)
    if n < 3:
        return RankTest(reason=f"{n} model{'' if n == 1 else 's'}: at least three are needed")
    correlate, variance, lost = (kendall, 0.437, 4) if kind == "kendall" else (spearman, 1.06, 3)
    found: Association | None = correlate(x, y, most=MOST_ORDERS, seed=seed)
    if found is None:
        return RankTest(reason="one of the two is the same for all models")
    low, high = None, None
    if n > lost and abs(found.coefficient) < 1 - TOLERANCE:
        half = -float(ndtri((1 - confidence_level) / 2)) * math.sqrt(variance / (n - lost))
        low, high = (math.tanh(math.atanh(found.coefficient) + side * half) for side in (-1, 1))
    return RankTest(found.coefficient, low, high, found.p_value, found.is_exact, min(1.0, 2 / math.factorial(n)))


def several(samples: Sequence[Sample], *, seed: int = 0) -> RankTest:
    """Whether samples differ: Kruskal and Wallis' H by permutation, effect epsilon squared H / (n - 1)."""
    sizes = [len(sample) for sample in samples]
    n = sum(sizes)
    if len(samples) < 2 or max(sizes) < 2:
        return RankTest(reason="at least two groups are needed, one of them with two models")
    values = np.concatenate(samples)
    if np.ptp(values) == 0:
        return RankTest(reason="the figure is the same for all models")
    ranks = stats.rankdata(values)
    bounds = np.cumsum([0, *sizes[:-1]])
    spread = float(((ranks - ranks.mean()) ** 2).sum())

    def between(ranked: Float64[np.ndarray, "*batch model"]) -> np.ndarray:
        sums = np.add.reduceat(ranked - ranks.mean(), bounds, axis=-1)
        return np.asarray((sums**2 / np.array(sizes)).sum(axis=-1) / spread)

    tried = orders(n, most=MOST_ORDERS, seed=seed)
    observed = float(between(ranks))
    p = p_value(observed, between(ranks[tried.order]), is_exact=tried.is_exact)
    # H is (n - 1) times the share of the ranks' spread that lies between the groups.
    return RankTest(observed, None, None, p, tried.is_exact, None)
