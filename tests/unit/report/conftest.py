"""The made-up study that reports are written of."""

from __future__ import annotations

import pytest

from outlier_moe.report.inputs import ReportInputs
from tests.reported_study import made_up_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    """Four models, without the training experiments, whose many pictures take most of a report's time."""
    return made_up_study(tmp_path_factory.mktemp("study"), has_experiments=False)
