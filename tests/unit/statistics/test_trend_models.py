"""Descriptions of a figure against size: each is the best of its own data, and too few models are said to be."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from outlier_moe.statistics.trend_models import N_PARAMETERS, TrendFit, fit_trends


def fits(x: np.ndarray, y: np.ndarray) -> dict[str, TrendFit]:
    return {fit.model: fit for fit in fit_trends(x, y)}


def best(x: np.ndarray, y: np.ndarray) -> str:
    return min(fits(x, y).values(), key=lambda fit: fit.aicc if fit.aicc is not None else math.inf).model


@pytest.mark.parametrize("model", ["constant", "line", "logistic_step", "change_point"])
def test_each_is_the_best_of_most_of_its_own_data(model: str) -> None:
    x = np.linspace(0, 10, 40)
    shapes = {
        "constant": np.zeros(40),
        "line": x,
        "logistic_step": 10 / (1 + np.exp(-(x - 4))),
        "change_point": 10.0 * (x > 4),
    }
    found = [best(x, shapes[model] + np.random.default_rng(seed).normal(0, 0.5, 40)) for seed in range(20)]
    assert Counter(found).most_common(1)[0][0] == model


def test_a_step_is_located_and_its_levels_found() -> None:
    x = np.linspace(-1, 1, 30)
    width = 0.5
    y = 2 + 5 / (1 + np.exp(-(x - 0.2) * 2 * math.log(9) / width))
    found = fits(x, y)["logistic_step"]
    assert (found.before, found.after) == pytest.approx((2, 7), abs=1e-3)
    assert (found.location, found.width) == pytest.approx((0.2, width), abs=1e-3)
    step = fits(x, 3.0 * (x > 0.2))["change_point"]
    assert (step.before, step.after) == pytest.approx((0, 3))
    assert step.location == pytest.approx((x[x <= 0.2].max() + x[x > 0.2].min()) / 2)


def test_aicc_of_a_line_by_hand() -> None:
    x = np.array([0.0, 1, 2, 3, 4, 5])
    y = np.array([0.0, 1.2, 1.9, 3.1, 4.2, 4.9])
    found = fits(x, y)["line"]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    rss = ((y - y.mean() - slope * (x - x.mean())) ** 2).sum()
    assert found.rss == pytest.approx(rss)
    assert found.aicc == pytest.approx(6 * math.log(rss / 6) + 2 * 3 + 2 * 3 * 4 / (6 - 3 - 1))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_too_many_parameters_are_not_considered(n: int) -> None:
    x = np.arange(float(n))
    for model, found in fits(x, x**2).items():
        assert (found.aicc is None) == (n <= N_PARAMETERS[found.model] + 1), model
        assert (found.aicc is None) == ("too few" in str(found.reason))


def test_one_size_for_all_leaves_the_constant_alone() -> None:
    found = fits(np.full(9, 2.0), np.arange(9.0))
    assert [fit.model for fit in found.values() if fit.aicc is not None] == ["constant"]


def test_a_perfect_fit_has_a_finite_criterion() -> None:
    x = np.arange(9.0)
    assert all(math.isfinite(fit.aicc or 0) for fit in fit_trends(x, np.full(9, 3.0)))
    assert best(x, 2 * x) == "line"
