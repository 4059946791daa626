import pytest

from outlier_moe.terminal.presentation import Column


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0.00"), (0.000071264, "0.000071"), (0.00331, "0.0033"), (0.1, "0.10"), (1234.5, "1,234.50"), (3, "3.00")],
)
def test_no_small_figure_is_cut_to_nothing(value: float, written: str) -> None:
    assert Column("", "decimal").written(value) == written
