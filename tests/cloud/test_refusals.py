"""Mistakes that are told before anything is rented."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cloud.lab import Lab, Start
from tests.cloud.stand_in.catalog import write_catalog

TARGET = "results/short-1.txt"
ACCELERATORS = "--set-resources=work_shortly:accelerators={}"


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        pytest.param(["--skypilot-max-price-per-hour", "0.5"], {}, "Raise it to at least 1.39", id="price-per-hour"),
        pytest.param(["--skypilot-max-price-total", "0.1"], {}, "Raise it to at least 0.23", id="price-total"),
        pytest.param(
            ["--set-resources", "work_shortly:accelerators=A1000-80GB"],
            {},
            "It has A100-80GB",
            id="unknown-accelerator",
        ),
        pytest.param(
            ["--set-resources", "work_shortly:accelerators=A100-80GB:3"], {}, "It has 1, 2, 4, 8", id="unknown-number"
        ),
        pytest.param([], {"SKYPILOT_SSH_KEY": "/nowhere/key"}, "An ssh key is missing", id="ssh-key"),
        pytest.param(["--skypilot-infra", "nowhere"], {}, "SkyPilot knows no such cloud.", id="unknown-cloud"),
        pytest.param([], {"RUNPOD_API_KEY": "another key"}, "they differ", id="two-keys"),
    ],
)
def test_refused(
    lab: Lab, folder: Path, start: Start, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    """The message has the remedy, and the cloud was asked for nothing."""
    n_before = len(lab.events("created"))
    # The key was written there by the first run that was let through.
    (lab.home / ".runpod").mkdir(exist_ok=True)
    (lab.home / ".runpod/config.toml").write_text(f'[default]\napi_key = "{lab.environment["RUNPOD_API_KEY"]}"\n')
    driver = start(TARGET, *arguments, **environment)
    assert driver.wait() == 1, driver.said
    assert said in driver.said and "Traceback" not in driver.said
    assert len(lab.events("created")) == n_before and lab.pods == []


def test_wrong_key(lab: Lab, folder: Path, start: Start) -> None:
    """A key that RunPod refuses, in an account's home of its own."""
    write_catalog(folder / "home")
    driver = start(TARGET, HOME=str(folder / "home"), RUNPOD_API_KEY="wrong")
    assert driver.wait() == 1, driver.said
    assert "The cloud refuses the key" in driver.said and "sky check runpod" in driver.said
    assert (folder / "home/.runpod/config.toml").stat().st_mode & 0o777 == 0o600
    assert lab.events("unauthorized") and lab.pods == []
