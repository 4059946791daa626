"""Values to pixels and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlier_moe.plots.scales import PixelScale, ScaleKind, domain_of, ticks_of

KINDS: list[ScaleKind] = ["linear", "log", "symlog"]


@given(values=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9), kind=st.sampled_from(KINDS))
def test_pixels_are_turned_back_into_values(values: list[float], kind: ScaleKind) -> None:
    scale = PixelScale(kind, domain_of(np.array(values), kind), (0.0, 460.0))
    pixels = scale.to_pixels(np.array(values))
    assert (pixels >= 0).all() and (pixels <= 460).all()
    assert [scale.to_value(float(pixel)) for pixel in pixels] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_axis_without_values_has_ends(kind: ScaleKind) -> None:
    low, high = domain_of(np.array([]), kind)
    assert low < high


@pytest.mark.parametrize("kind", KINDS)
def test_one_value_alone_has_room_on_either_side(kind: ScaleKind) -> None:
    low, high = domain_of(np.array([30.0]), kind, from_zero=False)
    assert low < 30 < high


def test_counts_start_at_zero() -> None:
    assert domain_of(np.array([5.0, 80.0]), "symlog")[0] == 0
    assert domain_of(np.array([0.0, 0.0]), "symlog") == pytest.approx((0, 1))


def test_large_counts_that_are_much_alike_do_not() -> None:
    low, high = domain_of(np.array([848.0, 1849.0]), "symlog")
    assert 300 < low < 848 and 1849 < high < 4000


@pytest.mark.parametrize(
    ("kind", "domain", "ticks"),
    [
        ("log", (0.04, 3.0), [0.05, 0.1, 0.2, 0.5, 1, 2]),
        ("log", (0.05, 150.0), [0.1, 1, 10, 100]),
        ("symlog", (0.0, 400.0), [0, 1, 10, 100]),
        ("log", (6.5, 12.5), [7, 8, 9, 10, 12]),
        ("symlog", (0.0, 20.0), [0, 1, 3, 10]),
        ("symlog", (400.0, 2500.0), [500, 1000, 2000]),
        ("linear", (0.0, 1.0), None),
    ],
)
def test_an_axis_has_decades_and_a_short_one_finer_ticks(
    kind: ScaleKind, domain: tuple[float, float], ticks: list | None
) -> None:
    assert ticks_of(kind, domain) == (None if ticks is None else pytest.approx(ticks))
