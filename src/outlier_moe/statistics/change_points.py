"""One change point between two constant levels: where it is, whether it is there, and how small a one could be seen.

Values are in the order of what they are held against; a split at c puts the first c on one side. The statistic of a
split is the difference of the two means in units of its own spread (up to a constant that permuting leaves alone), and
that of a data set the largest over all splits, so that searching for the best one is paid for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64

from outlier_moe.statistics.permutations import TOLERANCE, Orders, p_value
from outlier_moe.statistics.significance import LEVEL

Alternative = Literal["rise", "either"]
"""`rise`: the values after the change point are larger. `either`: larger or smaller."""

LEAST_SEGMENT = 2
"""Models on either side of a change point: one alone would make every outlying model a jump."""

_LARGEST_JUMP_SD = 64.0


class ChangePoint(NamedTuple):
    """The best split of some values."""

    split: int
    """Values before it."""
    before: float
    """Their mean."""
    after: float
    """The mean of the others."""
    residual_sd: float
    """Standard deviation about the two means, with n - 2 degrees of freedom; nan if there is none."""
    rss: float
    """Sum of squares about the two means."""


def allowed_splits(x: Float64[np.ndarray, " value"]) -> Int64[np.ndarray, " split"]:
    """Where ascending x may be split: between different values, with enough models on either side."""
    split = np.arange(LEAST_SEGMENT, len(x) - LEAST_SEGMENT + 1)
    return split[x[split - 1] < x[split]]


def split_statistics(
    y: Float64[np.ndarray, "value ..."], splits: Int64[np.ndarray, " split"]
) -> Float64[np.ndarray, "split ..."]:
    """The difference of the means, after less before, scaled so that its variance is alike at all splits.

    Values, and splits, are the first axis: sums and largest ones over a short last axis take many times longer.
    """
    n = len(y)
    by_split = splits.reshape(-1, *[1] * (y.ndim - 1))
    sums = np.cumsum(y, axis=0)[splits - 1]
    return np.asarray((by_split * y.mean(axis=0) - sums) * np.sqrt(n / (by_split * (n - by_split))))


def _largest(statistics: Float64[np.ndarray, "split ..."], alternative: Alternative) -> np.ndarray:
    return np.asarray((statistics if alternative == "rise" else np.abs(statistics)).max(axis=0))


def best_split(
    y: Float64[np.ndarray, " value"], splits: Int64[np.ndarray, " split"], alternative: Alternative
) -> ChangePoint:
    """The split that tells the values apart best, in the direction of the alternative."""
    statistics = split_statistics(y, splits)
    split = int(splits[int(np.argmax(statistics if alternative == "rise" else np.abs(statistics)))])
    before, after = y[:split], y[split:]
    rss = float(((before - before.mean()) ** 2).sum() + ((after - after.mean()) ** 2).sum())
    residual_sd = (rss / (len(y) - 2)) ** 0.5 if len(y) > 2 else float("nan")
    return ChangePoint(split, float(before.mean()), float(after.mean()), residual_sd, rss)


def change_point_p_values(
    y: Float64[np.ndarray, " value"],
    splits: Int64[np.ndarray, " split"],
    tried: Orders,
    alternatives: tuple[Alternative, ...] = get_args(Alternative),
) -> dict[Alternative, float]:
    """The p-values of "the order of the values does not matter" against a change point anywhere."""
    observed, permuted = split_statistics(y, splits), split_statistics(y[tried.order.T], splits)
    return {
        alternative: p_value(
            float(_largest(observed, alternative)), _largest(permuted, alternative), is_exact=tried.is_exact
        )
        for alternative in alternatives
    }


def beyond_line_p_value(
    x: Float64[np.ndarray, " value"],
    y: Float64[np.ndarray, " value"],
    splits: Int64[np.ndarray, " split"],
    tried: Orders,
    alternative: Alternative,
) -> float | None:
    """The p-value of "a line describes it" against a line with a step anywhere.

    The residuals of the line are permuted (Freedman and Lane 1983), which is approximate. 1 if the line leaves nothing
    to explain; None if so few values, or so few different x, cannot tell a step from a line.
    """
    onto_line, _ = np.linalg.qr(np.stack([np.ones(len(x)), x], axis=1))
    steps = _off(onto_line, (np.arange(len(x))[:, None] >= splits).astype(np.float64))
    lengths = np.sqrt((steps**2).sum(axis=0))
    steps = steps[:, lengths > TOLERANCE] / lengths[lengths > TOLERANCE]
    rest = _off(onto_line, y)
    if len(x) < 5 or not steps.shape[1]:
        return None
    if np.sqrt((rest**2).sum()) <= TOLERANCE * np.abs(y).max():
        return 1.0
    # Residuals in another order are partly explained by the line again.
    observed, permuted = (
        _largest(steps.T @ left, alternative) / np.sqrt((left**2).sum(axis=0))
        for left in (rest, _off(onto_line, rest[tried.order.T]))
    )
    return p_value(float(observed), permuted, is_exact=tried.is_exact)


def _off(
    onto_line: Float64[np.ndarray, "value 2"], values: Float64[np.ndarray, "value ..."]
) -> Float64[np.ndarray, "value ..."]:
    """What a line leaves of values."""
    return np.asarray(values - onto_line @ (onto_line.T @ values))


def smallest_p_value(splits: Int64[np.ndarray, " split"], at: int, tried: Orders, alternative: Alternative) -> float:
    """The p-value of a jump without any noise: the smallest that a jump at that split can have.

    Args:
        splits: The splits that are searched.
        at: The split that the jump is at.
        tried: The orders of the test.
        alternative: The test's alternative.
    """
    return change_point_p_values(_step(tried, at), splits, tried, (alternative,))[alternative]


def _step(tried: Orders, at: int) -> Float64[np.ndarray, " value"]:
    return (np.arange(tried.order.shape[1]) >= at).astype(np.float64)


def detectable_jump(
    splits: Int64[np.ndarray, " split"],
    at: int,
    tried: Orders,
    alternative: Alternative,
    *,
    level: float = LEVEL,
    power: float = 0.8,
    n_simulations: int = 400,
    seed: int = 0,
) -> float | None:
    """The smallest jump between normal values that the permutation test finds, by simulation.

    In standard deviations of the values about the two levels; None if no jump is found as often as asked.

    Args:
        splits: The splits that are searched.
        at: The split that the jump is at.
        tried: The orders of the test.
        alternative: The test's alternative.
        level: The test's level.
        power: How often the jump is to be found.
        n_simulations: Data sets simulated; the same noise for every size of jump.
        seed: Decides the noise.
    """
    step = _step(tried, at)
    noise = np.random.default_rng(seed).standard_normal((len(step), n_simulations))
    # A statistic is linear in the values before the largest is taken: noise and jump are put through it once.
    of_step = [split_statistics(values[..., None], splits) for values in (step, step[tried.order.T])]
    of_noise = [split_statistics(values, splits) for values in (noise, noise[tried.order.T])]

    def found(jump: float) -> float:
        observed, permuted = (
            _largest(noisy + jump * pure, alternative) for noisy, pure in zip(of_noise, of_step, strict=True)
        )
        reached = (permuted >= observed - TOLERANCE * np.abs(observed)).sum(axis=0)
        n_orders = len(permuted)
        p = reached / n_orders if tried.is_exact else (1 + reached) / (1 + n_orders)
        return float((p <= level).mean())

    if found(_LARGEST_JUMP_SD) < power:
        return None
    low, high = 0.0, _LARGEST_JUMP_SD
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) >= power else (middle, high)
    return high


def resampled_locations(
    x: Float64[np.ndarray, "resample value"], y: Float64[np.ndarray, "resample value"], alternative: Alternative
) -> Float64[np.ndarray, " location"]:
    """The middle of the gap of x at the best split of each resample; resamples that allow no split are left out."""
    order = np.argsort(x, axis=1, kind="stable")
    x, y = (np.take_along_axis(values, order, axis=1).T for values in (x, y))
    splits = np.arange(LEAST_SEGMENT, len(x) - LEAST_SEGMENT + 1)
    allowed: Bool[np.ndarray, "split resample"] = x[splits - 1] < x[splits]
    statistics = split_statistics(y, splits)
    statistics = np.where(allowed, statistics if alternative == "rise" else np.abs(statistics), -np.inf)
    best = splits[np.argmax(statistics, axis=0)][None, :]
    middle = (np.take_along_axis(x, best - 1, axis=0) + np.take_along_axis(x, best, axis=0))[0] / 2
    return middle[allowed.any(axis=0)]
