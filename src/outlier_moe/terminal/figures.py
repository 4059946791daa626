"""Numbers as people read them: plain, and an estimate in the same digits as the ends of its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

Number = float | int
StyleOfNumber = Literal["count", "percent", "magnitude", "decimal", "significant"]

DIGITS: dict[StyleOfNumber, int] = {"count": 0, "percent": 1, "magnitude": 1, "decimal": 2}
"""Digits behind the point of each style; of `significant` the largest number has three digits in all."""
SIGNIFICANT = 4
OF_INTERVALS = 3
MOST_MORE = 4
"""Digits that are added at most, where the ends of an interval would look the same."""
SMALLEST = 1e-6
"""Below that a number is written with its power of ten."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Estimate(NamedTuple):
    """An estimate and the ends of its interval, as they are shown."""

    value: str
    low: str
    high: str

    @property
    def interval(self) -> str:
        """The two ends."""
        return f"{self.low} to {self.high}"

    def __str__(self) -> str:
        """The estimate with its interval in brackets."""
        return f"{self.value} [{self.interval}]"


def plain(value: Number | None, significant: int = SIGNIFICANT, *, signed: bool = False) -> str:
    """A number in so many significant digits, never as `1.15e+03`: 1,150, 0.00034, 1.2 × 10⁻⁹.

    Args:
        value: The number.
        significant: Digits in all; whole numbers keep all of theirs in front of the point.
        signed: Whether a number above 0 has its sign.
    """
    if value is None:
        return "–"
    sign = "+" if signed and value > 0 else ""
    if not math.isfinite(value):
        return {math.inf: f"{sign}∞", -math.inf: "-∞"}.get(value, "not a number")
    if value == 0:
        return "0"
    if abs(value) >= 10**significant:
        return f"{sign}{value:,.0f}"
    rounded = Decimal(f"{value:.{significant - 1}e}")
    if abs(rounded) < Decimal(SMALLEST):
        return sign + power_of_ten(value, significant)
    return sign + _trimmed(f"{rounded:,f}")


def power_of_ten(value: Number, significant: int = 1) -> str:
    """A number by its size, for those too large or too small to be read plain: 3 × 10¹⁷.

    Args:
        value: The number, finite.
        significant: Digits in front of the power, in all.
    """
    digits, power = f"{value:.{significant - 1}e}".split("e")
    return f"{_trimmed(digits)} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def p_value(value: Number) -> str:
    """A p- or q-value in two digits; below a ten-thousandth only that it is."""
    return f"= {plain(value, 2)}" if value == 0 or value >= 1e-4 else "< 0.0001"


def with_ends(
    value: Number, low: Number, high: Number, style: StyleOfNumber, *, signed: bool = False, digits: int | None = None
) -> Estimate:
    """An estimate and its interval in the same digits, so that an estimate inside the interval is shown inside it.

    Where the ends would look the same though they differ, all three have more digits.

    Args:
        value: The estimate.
        low: The interval's lower end.
        high: Its upper end.
        style: How a figure of its kind is written; `percent` takes fractions.
        signed: Whether numbers above 0 have their sign.
        digits: Digits behind the point, in place of the style's.
    """
    factor = 100 if style == "percent" else 1
    numbers = [float(number) * factor for number in (value, low, high)]
    if style == "significant" and 0 < max(map(abs, numbers)) < SMALLEST:
        # Rounding errors, mostly: no reader counts thirty zeros.
        return Estimate(*(plain(number, OF_INTERVALS, signed=signed) for number in numbers))
    least = _digits(numbers) if style == "significant" else DIGITS[style]
    form = "+z" if signed else "z"
    least = least if digits is None else digits
    shown: list[str] = []
    for behind in range(least, least + MOST_MORE + 1):
        shown = [_unsigned_zero(f"{number:{form},.{behind}f}") for number in numbers]
        if shown[1] != shown[2] or low == high:
            break
    return Estimate(*shown)


def _digits(numbers: Sequence[float]) -> int:
    """Digits behind the point with which the largest of some numbers has three digits in all."""
    largest = max((abs(number) for number in numbers if math.isfinite(number)), default=0.0)
    return 0 if largest == 0 else max(0, OF_INTERVALS - 1 - math.floor(math.log10(largest)))


def _unsigned_zero(text: str) -> str:
    return text.lstrip("+") if not text.strip("+0.,") else text
