"""SkyPilot for the commands that look at rented nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlier_moe.errors import StudyError


def import_skypilot() -> Any:
    """SkyPilot, with this folder's .env in the environment, where keys may be.

    Raises:
        StudyError: If it is not installed, or .env cannot be read.
    """
    from snakemake_executor_plugin_skypilot.cloud import import_sky
    from snakemake_executor_plugin_skypilot.errors import RentalError
    from snakemake_executor_plugin_skypilot.preflight import load_environment

    try:
        load_environment(Path(".env"))
    except RentalError as error:
        raise StudyError(str(error)) from None
    try:
        return import_sky()
    except RentalError:
        remedy = "Run: make cloud; then .venv-cloud/bin/outlier-moe."
        raise StudyError("SkyPilot is not installed in this environment.", remedy=remedy) from None
