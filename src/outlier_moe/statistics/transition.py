"""A figure of several models along one axis: is there a jump, where, how surely, and how small a one could be seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from outlier_moe.statistics.change_points import (
    LEAST_SEGMENT,
    Alternative,
    Power,
    allowed_splits,
    best_split,
    beyond_line_p_value,
    change_point_p_values,
    detectable_jump,
    resampled_locations,
)
from outlier_moe.statistics.permutations import Orders, kendall, orders
from outlier_moe.statistics.trend_models import TrendFit, fit_trends

Verdict = Literal["none", "trend", "jump", "undecided"]
"""`none`: y does not depend on x, as far as can be seen. `trend`: it does, gradually. `jump`: two levels, or a logistic
step narrower than half the range, describe it best; or a line does, and a step improves on it. `undecided`: it depends
on x, and too few models say how."""


@dataclass(frozen=True)
class TransitionOptions:
    """How a transition is looked for."""

    alternative: Alternative = "rise"
    """`rise`: outliers spread as models get larger or their perplexity falls, which is the claim of Dettmers et al."""
    level: float = 0.05
    """The level of the tests."""
    power: float = 0.8
    """How often the detectable jump is to be found."""
    n_permutations: int = 9999
    """Orders tried; all of them where there are fewer."""
    n_resamples: int = 2000
    """Resamples of the models, for the change point's place."""
    n_simulations: int = 300
    """Data sets simulated for the power."""
    seed: int = 0
    """Decides all random draws."""


class Transition(NamedTuple):
    """What can be said of one figure along one axis; None where it cannot."""

    n_models: int
    reason: str | None = None
    """Why there is no test."""
    location: float | None = None
    """The change point: the middle of the gap of x that it falls into."""
    location_low: float | None = None
    location_high: float | None = None
    """The 2.5 % and 97.5 % points over resampled models (and sequences, where given)."""
    n_resamples: int = 0
    """Resamples in which a change point is possible."""
    before: float | None = None
    after: float | None = None
    p_value: float | None = None
    """Of the order being without meaning, against a change point anywhere, in the direction asked for."""
    p_value_either: float | None = None
    """The same against a change point in either direction."""
    p_value_beyond_line: float | None = None
    """Of a line, against a line with a step: whether it is more than a trend."""
    n_permutations: int = 0
    is_exact: bool = False
    """Whether these are all orders."""
    kendall_tau: float | None = None
    kendall_p_value: float | None = None
    residual_sd: float | None = None
    detectable_jump_sd: float | None = None
    """The smallest jump at the change point, in residual standard deviations, that the test would find."""
    smallest_p_value: float | None = None
    """The smallest that so many models can give, for a jump at the change point."""
    verdict: Verdict | None = None
    fits: tuple[TrendFit, ...] = ()

    @property
    def best(self) -> TrendFit | None:
        """The description with the lowest AICc."""
        scored = [fit for fit in self.fits if fit.aicc is not None]
        return min(scored, key=lambda fit: fit.aicc or 0.0, default=None)


def transition(
    x: Float64[np.ndarray, " model"],
    y: Float64[np.ndarray, " model"],
    *,
    options: TransitionOptions | None = None,
    draws: Float64[np.ndarray, "model draw"] | None = None,
) -> Transition:
    """Look for a jump of y along x.

    Args:
        x: What the models are ordered by, larger for stronger ones.
        y: The figure.
        options: How to look.
        draws: The figure in resamples of each model's sequences, to be drawn from where the models are resampled.
    """
    options = options or TransitionOptions()
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    draws = None if draws is None else draws[order]
    splits = allowed_splits(x) if len(x) else np.zeros(0, np.int64)
    fits = tuple(fit_trends(x, y)) if len(x) else ()
    if reason := _why_not(y, splits):
        return Transition(len(x), reason, fits=fits)
    tried = _orders(len(x), options.n_permutations, options.seed)
    change = best_split(y, splits, options.alternative)
    middle = float(x[change.split - 1] + x[change.split]) / 2
    rank = kendall(x, y, most=options.n_permutations, seed=options.seed)
    power = _power(len(x), tuple(splits.tolist()), change.split, options)
    low, high, n_resamples = _location_interval(x, y, draws, options)
    p_values = change_point_p_values(y, splits, tried)
    beyond_line = beyond_line_p_value(x, y, splits, tried, options.alternative)
    found = Transition(
        n_models=len(x),
        location=middle,
        location_low=low,
        location_high=high,
        n_resamples=n_resamples,
        before=change.before,
        after=change.after,
        p_value=p_values[options.alternative],
        p_value_either=p_values["either"],
        p_value_beyond_line=beyond_line,
        n_permutations=len(tried.order),
        is_exact=tried.is_exact,
        kendall_tau=rank and rank.coefficient,
        kendall_p_value=rank and rank.p_value,
        residual_sd=change.residual_sd,
        detectable_jump_sd=power.jump_sd,
        smallest_p_value=power.smallest_p,
        fits=fits,
    )
    return found._replace(verdict=_verdict(found, float(np.ptp(x)), options.level))


def _verdict(found: Transition, x_range: float, level: float) -> Verdict:
    best = found.best
    if found.p_value is None or found.p_value > level:
        return "none"
    if best is None or best.model == "constant":
        return "undecided"
    if best.model == "line":
        beyond = found.p_value_beyond_line
        return "jump" if beyond is not None and beyond <= level else "trend"
    is_gradual = best.width is not None and best.width > x_range / 2
    return "trend" if is_gradual else "jump"


# Many figures have as many models.
@cache
def _orders(n: int, most: int, seed: int) -> Orders:
    return orders(n, most=most, seed=seed)


def _why_not(y: Float64[np.ndarray, " model"], splits: Int64[np.ndarray, " split"]) -> str | None:
    if len(y) < 2 * LEAST_SEGMENT:
        models = "1 model" if len(y) == 1 else f"{len(y)} models"
        return f"{models}: a change point takes at least {2 * LEAST_SEGMENT}, {LEAST_SEGMENT} on either side"
    if not len(splits):
        return f"no split leaves {LEAST_SEGMENT} models with another x on either side"
    if np.ptp(y) == 0:
        return "the figure is the same for all models"
    return None


@cache
def _power(n: int, splits: tuple[int, ...], at: int, options: TransitionOptions) -> Power:
    """The power depends on n and the places of the splits alone, which many figures share."""
    # Fewer orders than the test itself tries: the size of a jump is wanted to a few per cent.
    tried = _orders(n, min(options.n_permutations, 199), options.seed)
    return detectable_jump(
        np.array(splits),
        at,
        tried,
        options.alternative,
        level=options.level,
        power=options.power,
        n_simulations=options.n_simulations,
        seed=options.seed,
    )


def _location_interval(
    x: Float64[np.ndarray, " model"],
    y: Float64[np.ndarray, " model"],
    draws: Float64[np.ndarray, "model draw"] | None,
    options: TransitionOptions,
) -> tuple[float | None, float | None, int]:
    random = np.random.default_rng(options.seed)
    chosen = random.integers(0, len(x), (options.n_resamples, len(x)))
    values = y[chosen]
    if draws is not None:
        drawn = draws[chosen, random.integers(0, draws.shape[1], chosen.shape)]
        values = np.where(np.isnan(drawn), values, drawn)
    found = resampled_locations(x[chosen], values, options.alternative)
    if not len(found.x):
        return None, None, 0
    low, high = np.quantile(found.x, [0.025, 0.975])
    return float(low), float(high), len(found.x)
