"""What costs no stage its start."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from outlier_moe.machine.start_up import uncollected


def test_what_is_there_after_the_imports_is_not_looked_through_again() -> None:
    made = [object()]
    with pytest.raises(ZeroDivisionError), uncollected():
        assert not gc.isenabled()
        made.append(made)
        _ = 1 / 0
    assert gc.isenabled()
    assert not any(made is tracked for tracked in gc.get_objects())


@pytest.mark.parametrize(
    "module", ["statistics.comparison", "statistics.study_checks", "report.page", "judging.edge_counts"]
)
def test_light_stages_start_without(module: str) -> None:
    heavy = {"scipy.stats", "torch", "numba", "pandas"}
    told = f"import sys, outlier_moe.{module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
