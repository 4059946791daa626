"""The example runs, and shows what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/first_look.py"


def test_the_first_look_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = runpy.run_path(str(EXAMPLE))
    assert shown["recording"].systematic()["feature"].to_list() == [3]
    assert shown["quiet"].systematic().is_empty()
    assert shown["table"]["n_systematic"].to_list() == [1, 0]
    assert shown["chart"].to_dict()["$schema"] and "random" in capsys.readouterr().out
