"""The study's configuration: validation by its schema, and checks that a schema cannot make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from outlier_moe.config.yaml_files import read_yaml, validate
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.presets import presets
from outlier_moe.definitions.sharding import Shard
from outlier_moe.definitions.taps import VIEWS
from outlier_moe.errors import StudyError, nearest
from outlier_moe.scale_sweep.study import check_sweeps
from outlier_moe.upcycling.study import check_upcycling

FILE = "config/config.yaml or --config"


def validated_study(document: object, schema_path: Path) -> dict[str, Any]:
    """The study with its defaults filled in.

    Args:
        document: What config.yaml and the command line say together.
        schema_path: The schema of config.yaml.

    Raises:
        StudyError: If a key or value is not allowed, or a threshold cannot be answered by what is recorded.
    """
    study = validate(_with_numbers(document), read_yaml(schema_path), file=FILE)
    _check_thresholds(study)
    _check_views(study)
    _check_shards(study)
    check_upcycling(study["upcycle"], file=FILE)
    check_sweeps(study, file=FILE)
    names = study["filter_systematic"]["presets"]
    default = study["compare_models"]["default_preset"]
    if default not in names:
        raise StudyError(
            "The default preset is not defined.",
            file=FILE,
            key="compare_models.default_preset",
            expected="one of " + ", ".join(names),
            got=default,
            remedy=nearest(default, names),
        )
    return study


def _with_numbers(value: Any) -> Any:
    """A value whose nested numbers are numbers: Snakemake reads --config 'a={b: 2.0}' as text below the top level."""
    if isinstance(value, Mapping):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, str) and value.strip():
        number = yaml.safe_load(value) if value[-1] in "0123456789." else value
        return number if type(number) in (int, float) else value
    return value


def _check_thresholds(study: Mapping[str, Any]) -> None:
    try:
        ladder = Ladder(floor=study["record_outliers"]["floor"])
    except StudyError as error:
        error.file, error.key = FILE, "record_outliers.floor"
        raise
    for preset in presets(study):
        own = "magnitude" in study["filter_systematic"]["presets"][preset.name]
        key = f"filter_systematic.presets.{preset.name}.magnitude" if own else "magnitude"
        # Massive activations are judged by their peaks, which are exact off the ladder too.
        if preset.rule == "systematic":
            ladder.index(preset.magnitude, key=key, file=FILE)
        elif preset.magnitude < ladder.floor:
            raise StudyError(
                "A threshold lies below the floor.",
                file=FILE,
                key=key,
                expected=f"at least {ladder.floor:g}",
                got=preset.magnitude,
            )


def _check_shards(study: Mapping[str, Any]) -> None:
    n_sequences = study["tokenize_corpus"]["n_sequences"]
    if n_sequences == "auto":
        return
    try:
        Shard(0, study["record_outliers"]["shards"]).sequences(n_sequences)
    except StudyError as error:
        error.file = FILE
        raise


def _check_views(study: Mapping[str, Any]) -> None:
    recorded = study["record_outliers"]["taps"]
    for preset in presets(study):
        missing = [tap for tap in VIEWS[preset.view] if tap not in recorded]
        if missing:
            raise StudyError(
                "A preset judges taps that are not recorded.",
                file=FILE,
                key=f"filter_systematic.presets.{preset.name}.view",
                expected="a view of the taps " + ", ".join(recorded),
                got=preset.view,
                remedy=f"Add {' and '.join(missing)} to record_outliers.taps, or take the preset out.",
            )
