"""Four descriptions of a figure against a model's size, compared by AICc: constant, line, logistic step, two levels."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize
from scipy.special import expit

from outlier_moe.statistics.change_points import allowed_splits, best_split

TrendModel = Literal["constant", "line", "logistic_step", "change_point"]

N_PARAMETERS: dict[TrendModel, int] = {"constant": 2, "line": 3, "logistic_step": 5, "change_point": 4}
"""Free parameters, the variance of the residuals among them. The change point's place counts as one, though it is
searched for: in noise it is the best description of 3 % of the sets of 10 models and of 16 % of those of 22. So being
the best is no test; `change_points` has those."""

RISE_OF_LOGISTIC = 2 * math.log(9)
"""How many of its scales a logistic takes from 10 % to 90 %."""

NARROWEST, WIDEST = 0.01, 1.0
"""Bounds of a logistic step's rise from 10 % to 90 %, in ranges of x: steeper is a step, flatter is a line."""

# Where a model fits perfectly its likelihood has no bound; residuals below this share of the spread are rounding.
_LEAST_SHARE = 1e-12


class TrendFit(NamedTuple):
    """One description, fitted."""

    model: TrendModel
    n_parameters: int
    rss: float | None
    """Sum of squared residuals."""
    aicc: float | None
    """Akaike's criterion with the correction for small samples, up to a constant that all share."""
    before: float | None
    """The level on the left: the line's and the logistic's at the first x, or the asymptote of a step."""
    after: float | None
    """The level on the right."""
    location: float | None
    """Where a step is."""
    width: float | None
    """The x that a logistic step takes from 10 % to 90 %."""
    reason: str | None
    """Why it was not considered."""


def fit_trends(x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> list[TrendFit]:
    """All descriptions of y against ascending x; one with too many parameters for n, or no place to change, says so."""
    n = len(x)
    fits = []
    for model in get_args(TrendModel):
        k = N_PARAMETERS[model]
        if n <= k + 1:
            reason = f"{n} models are too few for {k} parameters: AICc exists from {k + 2} on"
            fits.append(_without(model, reason))
        elif model != "constant" and np.ptp(x) == 0:
            fits.append(_without(model, "all models have the same x"))
        elif model == "change_point" and not len(allowed_splits(x)):
            fits.append(_without(model, "no split leaves two models with another x on either side"))
        else:
            fits.append(_scored(model, x, y))
    return fits


def _without(model: TrendModel, reason: str) -> TrendFit:
    return TrendFit(model, N_PARAMETERS[model], None, None, None, None, None, None, reason)


def _scored(model: TrendModel, x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> TrendFit:
    n, k = len(x), N_PARAMETERS[model]
    rss, before, after, location, width = _FITTED[model](x, y)
    spread = float(((y - y.mean()) ** 2).sum())
    likelihood = n * math.log(max(rss, _LEAST_SHARE * spread, 1e-300) / n)
    aicc = likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    return TrendFit(model, k, rss, aicc, before, after, location, width, None)


_Fitted = tuple[float, float, float, float | None, float | None]
"""Sum of squares, level before, level after, location, width."""


def _constant(x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> _Fitted:
    mean = float(y.mean())
    return float(((y - mean) ** 2).sum()), mean, mean, None, None


def _line(x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> _Fitted:
    slope, intercept = np.polyfit(x - x.mean(), y, 1)
    fitted = intercept + slope * (x - x.mean())
    return float(((y - fitted) ** 2).sum()), float(fitted[0]), float(fitted[-1]), None, None


def _change_point(x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> _Fitted:
    found = best_split(y, allowed_splits(x), "either")
    return found.rss, found.before, found.after, float(x[found.split - 1] + x[found.split]) / 2, None


_Points = Float64[np.ndarray, "*point place_and_log_width=2"]


def _logistic_step(x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> _Fitted:
    """Least squares over place and width; the two levels follow from them in closed form."""
    span = float(np.ptp(x))
    z, centred = (x - x[0]) / span, y - y.mean()

    def rss(points: _Points) -> np.ndarray:
        shape = _logistic(z, points)
        return np.asarray((centred**2).sum() - _explained(shape - shape.mean(axis=-1, keepdims=True), centred))

    widths = np.log([NARROWEST, WIDEST])
    grid = np.array(
        [(place, width) for place in np.linspace(0, 1, 41) for width in np.linspace(widths[0], widths[1], 25)]
    )
    start = grid[int(np.argmin(rss(grid)))]
    polished = minimize(lambda point: float(rss(point)), start, method="Nelder-Mead", bounds=[(0, 1), tuple(widths)])
    place, log_width = polished.x if polished.fun <= rss(start) else start
    shape = _logistic(z, np.array([place, log_width]))
    design = np.stack([1 - shape, shape], axis=1)
    (before, after), *_ = np.linalg.lstsq(design, y, rcond=None)
    residuals = y - design @ np.array([before, after])
    location, width = float(x[0] + span * place), span * math.exp(log_width)
    return float((residuals**2).sum()), float(before), float(after), location, width


def _logistic(z: Float64[np.ndarray, " value"], points: _Points) -> Float64[np.ndarray, "... value"]:
    scale = np.exp(points[..., 1:]) / RISE_OF_LOGISTIC
    return np.asarray(expit((z - points[..., :1]) / scale))


def _explained(shape: Float64[np.ndarray, "*batch value"], y: Float64[np.ndarray, " value"]) -> np.ndarray:
    """The sum of squares of y that centred shapes explain."""
    square = (shape**2).sum(axis=-1)
    return np.asarray(np.where(square > 1e-18, (shape @ y) ** 2 / np.maximum(square, 1e-18), 0.0))


_FITTED = {"constant": _constant, "line": _line, "logistic_step": _logistic_step, "change_point": _change_point}
