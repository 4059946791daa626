"""A default stands in the study's schema; the same choice made from Python has the same one."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.presets import Preset
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.planning.workload import Workload
from outlier_moe.scale_sweep.images import ImageOptions
from outlier_moe.statistics.bootstrap import BootstrapOptions
from outlier_moe.statistics.dense_moe import DenseMoeOptions
from outlier_moe.training.options import TrainingOptions
from outlier_moe.training.text_stream import TextOptions
from outlier_moe.upcycling.study import ExpertSizes
from outlier_moe.upcycling.transfer import TransferOptions

SCHEMA = Path(__file__).parents[3] / "workflow/schemas/config.schema.yaml"

SECTIONS = [
    (RecordOptions, "record_outliers"),
    (Ladder, "record_outliers"),
    (Workload, "tokenize_corpus"),
    (Workload, "record_outliers"),
    (Preset, ""),
    (BootstrapOptions, "bootstrap_comparison"),
    (DenseMoeOptions, "test_models"),
    (DenseMoeOptions, "bootstrap_comparison"),
    (TextOptions, "upcycle.text"),
    (ExpertSizes, "upcycle.experts"),
    (TransferOptions, "upcycle.experts"),
    (TrainingOptions, "upcycle.training"),
    (TrainingOptions, "scale_sweep.training"),
    (TrainingOptions, "lm_scale_sweep.training"),
    (ImageOptions, "scale_sweep.images"),
]


@cache
def schema() -> dict[str, Any]:
    return read_yaml(SCHEMA)


def defaults_of(section: str) -> dict[str, Any]:
    """The defaults of a section's own keys."""
    found = schema()
    for key in filter(None, section.split(".")):
        found = found["properties"][key]
    return {key: each["default"] for key, each in found["properties"].items() if "default" in each}


@pytest.mark.parametrize(("options", "section"), SECTIONS)
def test_python_has_the_defaults_of_the_study(options: type, section: str) -> None:
    stated = defaults_of(section)
    own = {field.name: field.default for field in fields(options) if field.default is not MISSING}
    shared = own.keys() & stated.keys()
    assert shared, "The section has none of these options: the pair says nothing."
    assert {name: own[name] for name in shared} == {
        name: tuple(stated[name]) if isinstance(stated[name], list) else stated[name] for name in shared
    }
