"""Lines of a redirected run: done, total and time left, a few of them."""

from __future__ import annotations

import io
import sys

import pytest

from outlier_moe.machine.progress import SparseLines, token_progress


def test_lines_come_now_and_then_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([100.0, 105.0, 110.0, 120.0, 125.0, 140.0, 150.0])
    lines = SparseLines("smollm2", 1000, "tokens", n_done=200, seconds_between=15.0, clock=lambda: next(times))
    for _ in range(6):
        lines.advance(100)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == ["smollm2: 500 of 1", "smollm2: 700 of 1"]
    assert "33 s left" in said[0], "300 in 20 s, 500 are left"
    assert "24 s left" in said[1], "500 in 40 s, 300 are left"


def test_long_times_are_minutes_and_the_end_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = SparseLines("x", 100, "steps", clock=lambda: now)
    now = 60.0
    lines.advance(10)
    now = 600.0
    lines.advance(90)
    assert capsys.readouterr().err == "x: 10 of 100 steps, about 9 min left\n"


def test_a_terminal_has_a_bar_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    SparseLines("x", 100, "steps", seconds_between=0.0).advance(10)
    assert stream.getvalue() == ""


def test_a_recording_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with token_progress("tiny", 96, seconds_between=0.0) as advance:
        advance(0)
        advance(32)
        advance(64)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("tiny: 32 of 96 tokens, about ")
