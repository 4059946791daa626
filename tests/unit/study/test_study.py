"""The shipped study is valid, and each mistake in one is named with its remedy."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.definitions.presets import presets
from outlier_moe.errors import StudyError
from outlier_moe.study.study import validated_study

SCHEMA = Path("workflow/schemas/config.schema.yaml")
SHIPPED: dict[str, Any] = read_yaml(Path("config/config.yaml"))


def changed(**changes: object) -> dict[str, Any]:
    study = deepcopy(SHIPPED)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = study
        for parent in parents:
            place = place[parent]
        place[key] = value
    return study


def test_the_shipped_study_is_valid_and_spells_out_the_defaults() -> None:
    study = validated_study(SHIPPED, SCHEMA)
    bare = {"filter_systematic": SHIPPED["filter_systematic"]}
    spelt_out = {key: value for key, value in validated_study(bare, SCHEMA).items() if key != "filter_systematic"}
    assert spelt_out == {key: value for key, value in study.items() if key != "filter_systematic"}


def test_nested_numbers_given_on_the_command_line_are_numbers() -> None:
    study = validated_study(changed(record_outliers__floor="2.0"), SCHEMA)
    assert study["record_outliers"]["floor"] == 2.0


def test_a_preset_takes_the_thresholds_of_the_study_unless_it_has_its_own() -> None:
    study = validated_study(changed(magnitude=5.0, layer_fraction=0.5), SCHEMA)
    by_name = {preset.name: preset for preset in presets(study)}
    assert by_name["dettmers2022"].magnitude == 5.0
    assert by_name["dettmers2022"].layer_fraction == 0.5
    assert by_name["sun2024"].magnitude == 100.0


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"magnitud": 5.0}, "magnitud", "Did you mean 'magnitude'"),
        ({"record_outliers__tap": []}, "record_outliers.tap", "Did you mean 'taps'"),
        ({"magnitude": 5.1}, "magnitude", "nearest edges are 5 and 5.5"),
        ({"magnitude": 2.5}, "magnitude", "an edge from 3"),
        ({"magnitude": "six"}, "magnitude", "a finite number above 0"),
        ({"layer_fraction": 1.5}, "layer_fraction", "at most 1"),
        ({"record_outliers__floor": 3.1}, "record_outliers.floor", "nearest edges are 3 and 3.25"),
        ({"record_outliers__floor": 104.0}, "magnitude", "an edge from 104"),
        ({"record_outliers__taps": ["residual"]}, "filter_systematic.presets.dettmers2022.view", "Add attn_in and"),
        (
            {"filter_systematic__presets__dettmers2022__view": "residuals"},
            "filter_systematic.presets.dettmers2022.view",
            "Did you mean 'residual'",
        ),
        (
            {"filter_systematic__presets__residual__magnitude": 6.1},
            "filter_systematic.presets.residual.magnitude",
            "nearest edges are 6 and 6.5",
        ),
        (
            {"filter_systematic__presets__sun2024__magnitude": 2.0},
            "filter_systematic.presets.sun2024.magnitude",
            "at least 3",
        ),
        ({"compare_models__default_preset": "dettmers"}, "compare_models.default_preset", "mean 'dettmers2022'"),
        ({"sweep": "moee"}, "sweep", "Did you mean 'moe'"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(StudyError) as error:
        validated_study(changed(**changes), SCHEMA)
    assert error.value.key == key
    assert "config/config.yaml" in str(error.value.file)
    assert says in str(error.value)
