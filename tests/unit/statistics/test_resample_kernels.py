"""The compiled medians against numpy's."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from outlier_moe.statistics import resample_kernels as kernels


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=60))
@example([1e-320, 0.0, 0.0])
@example([0.0, 1.0] * 5)
def test_the_median_of_any_values(values: list[float]) -> None:
    n_in_bin = np.zeros(16, np.int64)
    assert kernels._median(np.array(values), n_in_bin) == np.median(values)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_the_median_of_counts(values: list[int]) -> None:
    assert kernels._median_of_counts(np.bincount(values, minlength=10), len(values)) == np.median(values)


@given(st.integers(0, 2**64 - 1))
def test_the_bits_of_a_word(word: int) -> None:
    assert kernels._ones(np.uint64(word)) == word.bit_count()
