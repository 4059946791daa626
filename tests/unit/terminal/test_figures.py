"""Numbers as people read them: an estimate inside its interval is shown inside it, and none has an exponent."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outlier_moe.terminal.figures import Estimate, StyleOfNumber, p_value, plain, power_of_ten, with_ends

number = st.floats(-1e6, 1e6) | st.floats(-1, 1) | st.integers(0, 200_000).map(float)
# Smaller ones have powers of ten.
number = number.filter(lambda value: value == 0 or abs(value) >= 1e-6)


def read(text: str) -> Decimal:
    """A number as a person reads it."""
    return Decimal(text.replace(",", ""))


def behind_the_point(text: str) -> int:
    return len(text.partition(".")[2])


@given(
    ordered=st.tuples(number, number, number).map(sorted),
    style=st.sampled_from(get_args(StyleOfNumber)),
    signed=st.booleans(),
)
@example(ordered=[0.6381, 0.6385, 0.6391], style="percent", signed=False)
@example(ordered=[-0.0, 0.0, 0.0], style="decimal", signed=True)
def test_an_estimate_is_shown_inside_its_interval(ordered: list[float], style: StyleOfNumber, signed: bool) -> None:
    low, value, high = ordered
    shown = with_ends(value, low, high, style, signed=signed)
    assert read(shown.low) <= read(shown.value) <= read(shown.high)
    # A zero has no sign, and all have as many digits.
    assert len({behind_the_point(text) for text in shown}) == 1
    factor = 100 if style == "percent" else 1
    for text, exact in zip(shown, (value, low, high), strict=True):
        assert float(read(text)) == pytest.approx(factor * exact, abs=0.5001)
        assert not (read(text) == 0 and text.startswith(("-", "+")))


def test_rounding_errors_have_powers_of_ten() -> None:
    shown = with_ends(-1.41e-32, -8.09e-32, 5.27e-32, "significant", signed=True)
    assert (shown.value, shown.interval) == ("-1.41 × 10⁻³²", "-8.09 × 10⁻³² to +5.27 × 10⁻³²")
    assert with_ends(0.0, 0.0, 0.0, "significant").value == "0"


def test_ends_that_would_look_the_same_give_all_three_more_digits() -> None:
    assert with_ends(0.63852, 0.6381, 0.6391, "percent") == Estimate("63.9", "63.8", "63.9")
    assert with_ends(12, 11.9, 12.2, "count") == Estimate("12.0", "11.9", "12.2")
    assert with_ends(12, 12, 12, "count") == Estimate("12", "12", "12")
    assert str(with_ends(1234.5, 1000, 1500, "significant")) == "1,234 [1,000 to 1,500]"


@given(value=st.floats(allow_nan=False, allow_infinity=False), significant=st.integers(1, 6))
def test_no_number_has_an_exponent(value: float, significant: int) -> None:
    text = plain(value, significant)
    assert "e" not in text.lower()
    if abs(value) >= 1e-6:
        assert float(read(text)) == pytest.approx(value, rel=10.0 ** (1 - significant), abs=0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1150.0, "1,150"), (102014.0, "102,014"), (0.5, "0.5"), (3.4e-4, "0.00034"), (1.2e-9, "1.2 × 10⁻⁹"), (-0.0, "0")],
)
def test_plain_numbers(value: float, text: str) -> None:
    assert plain(value) == text


def test_what_is_no_number() -> None:
    assert [plain(value, signed=True) for value in (math.inf, -math.inf, math.nan, None)] == [
        "+∞",
        "-∞",
        "not a number",
        "–",
    ]


def test_small_p_values() -> None:
    assert [p_value(value) for value in (0.0346, 0.0001, 9e-5, 1.0)] == ["= 0.035", "= 0.0001", "< 0.0001", "= 1"]


@pytest.mark.parametrize(
    ("value", "significant", "written"),
    [(3.2e17, 1, "3 × 10¹⁷"), (3.25e17, 2, "3.2 × 10¹⁷"), (9.7e14, 1, "1 × 10¹⁵"), (0.0025, 2, "2.5 × 10⁻³")],
)
def test_a_size_is_written_with_its_power(value: float, significant: int, written: str) -> None:
    assert power_of_ten(value, significant) == written
