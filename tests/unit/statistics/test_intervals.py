"""BCa intervals: scipy's where scipy has one, a reason where there is none, and their coverage."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.sequence_tables import SequenceTables
from outlier_moe.statistics.bootstrap import BootstrapOptions, drawn_weights
from outlier_moe.statistics.intervals import SIMULATED, Coverage, bca_interval, bca_intervals
from outlier_moe.statistics.resampled_figures import preset_figures


@given(seed=st.integers(0, 2**16), n=st.integers(3, 20), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=40, deadline=None)
def test_equals_scipy(seed: int, n: int, level: float) -> None:
    # Sums of sixty-fourths are exact: elsewhere the last digit decides which resamples scipy takes to be below.
    sample = np.round(64 * np.random.default_rng(seed).exponential(size=n)) / 64
    hypothesis.assume(np.ptp(sample) > 0)
    expected = stats.bootstrap((sample,), np.mean, n_resamples=500, confidence_level=level, rng=1, method="BCa")
    left_out = np.array([np.delete(sample, i).mean() for i in range(n)])
    found = bca_interval(sample.mean(), expected.bootstrap_distribution, [left_out], confidence_level=level)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval))
    assert found.standard_error == pytest.approx(expected.standard_error)
    assert found.reason is None


def test_two_samples_equal_scipy() -> None:
    random = np.random.default_rng(0)
    a, b = random.exponential(size=7), random.exponential(size=11)
    expected = stats.bootstrap((a, b), lambda a, b: a.mean() - b.mean(), n_resamples=500, rng=1, method="BCa")
    left_out = [
        np.array([np.delete(a, i).mean() - b.mean() for i in range(7)]),
        np.array([a.mean() - np.delete(b, i).mean() for i in range(11)]),
    ]
    found = bca_interval(a.mean() - b.mean(), expected.bootstrap_distribution, left_out)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval))


@pytest.mark.parametrize(
    ("estimate", "resamples", "left_out", "reason"),
    [
        (np.nan, [1.0, 2.0], [1.0, 2.0], "does not exist"),
        (1.0, [], [], "fewer than two"),
        (1.0, [1.0, 2.0, np.nan, 3.0], [1.0, 2.0], "25% of the resamples"),
        (1.0, [0.0, 1.0, 2.0], [1.0, np.nan], "without one of the sequences"),
        (1.0, [1.0, 1.0, 1.0 + 1e-15], [1.0, 1.0], "same figure"),
        (3.0, [0.0, 1.0, 2.0], [1.0, 2.0], "100.0% of the resamples lie below"),
        (-1.0, [0.0, 1.0, 2.0], [1.0, 2.0], "lie above"),
        (0.0, [-1.0, *np.linspace(1, 2, 99)], [1.0, 2.0], "99.0% of the resamples lie above"),
    ],
)
def test_no_interval_has_a_reason(estimate: float, resamples: list, left_out: list, reason: str) -> None:
    found = bca_interval(estimate, np.array(resamples, float), [np.array(left_out, float)])
    assert found.low is None
    assert found.high is None
    assert reason in str(found.reason)


def test_a_few_resamples_without_the_figure_are_left_out() -> None:
    resamples = np.append(np.random.default_rng(0).normal(size=999), np.nan)
    found = bca_interval(0.0, resamples, [np.array([-1.0, 0.0, 1.0])])
    assert found.n_resamples == 999
    assert found.reason is None


def test_many_figures_at_once_have_the_intervals_of_each() -> None:
    random = np.random.default_rng(3)
    estimates = np.array([0.5, np.nan, 2.0, 0.0, 0.4, 9.0])
    resamples = random.normal(estimates[:, None], 1.0, (6, 200))
    resamples[1] = np.nan
    resamples[2] = 2.0
    resamples[4, 7] = np.nan
    resamples[5, ::2] = np.nan
    left_out = [random.normal(size=(6, 5)), random.normal(size=(6, 4))]
    found = bca_intervals(estimates, resamples, left_out)
    alone = [bca_interval(estimates[i], resamples[i], [sample[i] for sample in left_out]) for i in range(6)]
    assert found == alone
    assert [interval.reason is None for interval in found] == [True, False, False, True, True, False]
    assert [interval.n_resamples for interval in found] == [200, 0, 200, 200, 199, 100]


def test_shares_say_which_way_the_resamples_fell() -> None:
    found = bca_interval(2.0, np.array([0.0, 1.0, 2.0, 2.0]), [np.array([1.0, 2.0, 2.0])])
    assert (found.share_below, found.share_above) == (0.5, 0.0)


def tables_of(n_positions: np.ndarray, *, positions: int) -> SequenceTables:
    """Features that affect every layer of every sequence, and so many positions each."""
    n_sequences, n_features = n_positions.shape
    return SequenceTables(
        preset=Preset("p", "systematic", "residual", 6.0),
        first_token="included",
        sites=np.full((n_sequences, 1, 1, n_features), 0b1111, np.uint64),
        n_values=4 * n_positions,
        n_positions=n_positions,
        peak=np.full((n_sequences, n_features), 7.0, np.float32),
        d_model=n_features,
        layers=4,
        positions=positions,
    )


@pytest.mark.parametrize(("n_other", "low"), [(5, None), (40, 7.0)])
def test_an_interval_without_a_width_is_none(n_other: int, low: float | None) -> None:
    """A count of 8 that 1 or 7 in a hundred resamples miss: `8 [8 to 8]` would say that it is certain."""
    resamples = np.repeat([7.0, 8.0, 9.0], [n_other, 600 - 2 * n_other, n_other])
    found = bca_interval(8.0, resamples, [np.array([8.0, 8.0, 8.0, 7.0, 9.0])])
    assert found.low == low
    assert found.share_below == found.share_above == pytest.approx(n_other / 600)
    assert found.standard_error is not None and found.standard_error > 0
    if low is None:
        assert found.high is None
        assert found.reason == "only 1.7% of the resamples give another figure: too few for a width"


FIGURES = ("n_values", "position_fraction_mean", "n_systematic")
N_STUDIES = 200


def coverage(n: int, *, by_feature: bool, shape: float) -> list[float]:
    """How often intervals of `n` sequences hold what such texts give on average, for each figure.

    Args:
        n: Sequences.
        by_feature: Whether each feature varies from sequence to sequence by itself, or all of them together.
        shape: Of the gamma distribution that multiplies a feature's rate: 1 varies much, 6 little.
    """
    random = np.random.default_rng(5)
    n_features, positions = 100, 1000
    rates = np.linspace(0.01, 0.2, n_features)
    whole = np.ones((1, n), np.int64)
    weights = np.concatenate([whole, whole - np.eye(n, dtype=np.int64), drawn_weights(n, BootstrapOptions(499))])

    def text() -> SequenceTables:
        factor = random.gamma(shape, 1 / shape, (n, n_features if by_feature else 1))
        return tables_of(random.binomial(positions, np.clip(rates * factor, 0, 1)), positions=positions)

    others = [preset_figures(text(), whole) for _ in range(N_STUDIES)]
    studies = [preset_figures(text(), weights) for _ in range(N_STUDIES)]
    shares = []
    for name in FIGURES:
        truth = np.mean([found[name][0] for found in others])
        values = np.stack([found[name] for found in studies])
        intervals = bca_intervals(values[:, 0], values[:, n + 1 :], [values[:, 1 : n + 1]])
        known = [(of.low, of.high) for of in intervals if of.low is not None and of.high is not None]
        assert len(known) >= 0.9 * N_STUDIES
        shares.append(sum(low <= truth <= high for low, high in known) / len(known))
    return shares


@pytest.mark.parametrize("simulated", SIMULATED)
def test_coverage_on_simulated_sequences_is_what_the_report_says(simulated: Coverage) -> None:
    """Sequences differ as wholes, or each feature by itself, little or much; then counts are held least often."""
    kinds = [
        coverage(simulated.n_sequences, by_feature=False, shape=6),
        coverage(simulated.n_sequences, by_feature=True, shape=6),
        coverage(simulated.n_sequences, by_feature=True, shape=1),
    ]
    assert simulated.confidence_level == 0.95
    # Two standard errors of a share of 0.75 over 200 studies are 0.061.
    assert min(map(min, kinds)) == pytest.approx(simulated.least, abs=0.061), kinds
    assert max(map(max, kinds)) == pytest.approx(simulated.most, abs=0.061), kinds
    assert all(shares[2] == min(shares) < min(kinds[0]) for shares in kinds[1:]), kinds
