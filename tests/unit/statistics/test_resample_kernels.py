"""The compiled search for the middle, and what is counted by bits, against plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outlier_moe.statistics import resample_kernels as kernels
from outlier_moe.statistics.resampled_figures import _of_subsets

WHOLE = st.integers(0, 60) | st.integers(0, 2**40)


@given(st.lists(st.lists(WHOLE, min_size=1, max_size=60), min_size=1, max_size=6), st.integers(0, 5), WHOLE, WHOLE)
@example([[3, 3, 3, 3]], 2, 3, 0)
@example([[0, 1] * 5], 0, 40, 0)
@example([[0]], 0, 0, 2**40)
def test_the_middle_wherever_it_is_looked_for(draws: list[list[int]], others: int, middle: int, width: int) -> None:
    near = np.array([middle, width])
    for values in draws:
        ordered, n = sorted(values), len(values)
        # What is no number of the draw may stand anywhere among them.
        keys = np.insert(np.array(values), [0] * others, kernels.LAST)
        assert kernels._find_middle(keys, n, near) == (ordered[(n - 1) // 2], ordered[n // 2])


def test_it_is_soon_looked_for_in_a_narrow_range() -> None:
    near = np.zeros(2, np.int64)
    for seed in range(300):
        values = 20_000 + np.random.default_rng(seed).integers(0, 1000, 501)
        kernels._find_middle(values, len(values), near)
    assert near[1] < 500


@given(st.integers(0, 2**64 - 1))
def test_the_bits_of_a_word(word: int) -> None:
    assert kernels._ones(np.uint64(word)) == word.bit_count()


@given(st.integers(1, 300), st.data())
def test_the_least_number_of_a_fraction(whole: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(0, whole).map(lambda part: part / whole) | st.floats(0, 1))
    assert kernels._least(least, whole) == next(n for n in range(1, whole + 2) if n / whole >= least)


@pytest.mark.parametrize("n_sequences", [1, 4, 6])
def test_every_subset_of_a_group(n_sequences: int) -> None:
    peak = np.random.default_rng(0).random((n_sequences, 3)).astype(np.float32)
    largest = _of_subsets(peak, np.maximum)
    for group, subsets in enumerate(largest):
        for subset, found in enumerate(subsets):
            chosen = [group * kernels.GROUP + bit for bit in range(kernels.GROUP) if subset >> bit & 1]
            if max(chosen, default=0) < n_sequences:
                np.testing.assert_array_equal(found, peak[chosen].max(axis=0, initial=0))
