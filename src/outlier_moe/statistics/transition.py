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
    allowed_splits,
    best_split,
    beyond_line_p_value,
    change_point_p_values,
    detectable_jump,
    resampled_locations,
    smallest_p_value,
)
from outlier_moe.statistics.permutations import Orders, kendall, orders
from outlier_moe.statistics.significance import LEVEL
from outlier_moe.statistics.trend_models import TrendFit, fit_trends

Verdict = Literal["none", "too_few", "mixed", "fall", "rise", "jump"]
"""`jump`: y rises along x at a change point, and more than any line says; two levels, a line with a step, or a logistic
step narrower than half the range describe it. `rise`: it rises, and no jump stands out. `fall`: it falls. `mixed`: it
does both. `none`: neither is seen, and a jump could have been. `too_few`: nothing is seen, and so few models could not
show a jump of any size."""


@dataclass(frozen=True)
class TransitionOptions:
    """Options of the search for a transition."""

    alternative: Alternative = "rise"
    """`rise`: outliers spread as models get larger or their perplexity falls, which is the claim of Dettmers et al."""
    level: float = LEVEL
    """The level of the tests, and of the false discovery rate of many of them."""
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


class Evidence(NamedTuple):
    """Evidence that y depends on x: p-values of one figure, or q-values of one among many."""

    change: float | None
    """Against a change point in the direction asked for."""
    change_either: float | None
    """Against one in either direction."""
    order: float | None
    """Kendall's tau."""
    beyond_line: float | None
    """Against a line, for a line with a step."""


class Transition(NamedTuple):
    """The result for one figure along one axis; None where there is none."""

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
    """p-value of no dependence against a change point anywhere, in the direction asked for."""
    p_value_either: float | None = None
    """The same against a change point in either direction."""
    p_value_beyond_line: float | None = None
    """p-value of a line against a line with a step: whether there is more than a trend."""
    n_permutations: int = 0
    is_exact: bool = False
    """Whether all orders were tried."""
    kendall_tau: float | None = None
    kendall_p_value: float | None = None
    residual_sd: float | None = None
    detectable_jump_sd: float | None = None
    """The smallest jump at the change point, in residual standard deviations, that the test would find."""
    smallest_p_value: float | None = None
    """The smallest that so many models can give, for a jump at the change point."""
    is_abrupt: bool = False
    """Whether the best description allows of a jump: it is no constant, and no logistic over half the range of x."""
    verdict: Verdict | None = None
    """The verdict by these p-values alone, without other figures."""
    fits: tuple[TrendFit, ...] = ()

    @property
    def best(self) -> TrendFit | None:
        """The description with the lowest AICc."""
        scored = [fit for fit in self.fits if fit.aicc is not None]
        return min(scored, key=lambda fit: fit.aicc or 0.0, default=None)

    @property
    def evidence(self) -> Evidence:
        """The figure's own p-values."""
        return Evidence(self.p_value, self.p_value_either, self.kendall_p_value, self.p_value_beyond_line)


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
        detectable_jump_sd=_detectable(len(x), tuple(splits.tolist()), change.split, options),
        smallest_p_value=smallest_p_value(splits, change.split, tried, options.alternative),
        fits=fits,
    )
    found = found._replace(is_abrupt=_is_abrupt(found.best, float(np.ptp(x))))
    return found._replace(verdict=verdict_of(found, found.evidence, level=options.level))


def _is_abrupt(best: TrendFit | None, x_range: float) -> bool:
    if best is None or best.model == "constant":
        return False
    return best.width is None or best.width <= x_range / 2


def verdict_of(found: Transition, evidence: Evidence, *, level: float) -> Verdict | None:
    """The verdict about a figure along an axis at a level; None without a test.

    Args:
        found: The figure along the axis.
        evidence: Its own p-values, or the q-values that they have among those of other figures.
        level: The most that they may be.
    """
    if found.p_value is None or found.before is None or found.after is None or found.p_value_either is None:
        return None

    # A change in either direction that is surer than one upwards is one downwards.
    is_down = found.after < found.before or found.p_value_either < found.p_value
    steps_up = _is_seen(evidence.change, level) and found.after > found.before
    is_ordered, tau = _is_seen(evidence.order, level), found.kendall_tau or 0.0
    rises = steps_up or (is_ordered and tau > 0)
    falls = (_is_seen(evidence.change_either, level) and is_down) or (is_ordered and tau < 0)
    if rises and falls:
        return "mixed"
    if falls:
        return "fall"
    if rises:
        return "jump" if steps_up and found.is_abrupt and _is_seen(evidence.beyond_line, level) else "rise"
    return "none" if _is_seen(found.smallest_p_value, level) else "too_few"


def _is_seen(value: float | None, level: float) -> bool:
    return value is not None and value <= level


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
def _detectable(n: int, splits: tuple[int, ...], at: int, options: TransitionOptions) -> float | None:
    """The power depends on n and the places of the splits alone, which many figures share."""
    # Fewer orders than the test itself tries: the size of a jump is wanted to a few per cent. Of so few models even a
    # jump without noise has a p-value near the level, which takes more of them to tell.
    most = 999 if n <= 8 else 199
    tried = _orders(n, min(options.n_permutations, most), options.seed)
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
    if not len(found):
        return None, None, 0
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high), len(found)
