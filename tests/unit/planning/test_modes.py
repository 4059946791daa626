"""Which mode a model fits."""

from __future__ import annotations

import pytest

from outlier_moe.planning.modes import LEAST_MARGIN_BYTES, MARGIN, _with_margin


@pytest.mark.parametrize(
    ("needed", "margin"),
    [(0, LEAST_MARGIN_BYTES), (2**20, LEAST_MARGIN_BYTES), (2**36, MARGIN * 2**36)],
    ids=["nothing", "a small model", "a large one"],
)
def test_a_small_model_has_the_least_margin(needed: int, margin: float) -> None:
    assert _with_margin(needed) == pytest.approx(needed + margin)
    assert isinstance(_with_margin(needed), float)
