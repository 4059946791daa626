"""A small study of made-up models, as a report is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_moe.definitions.presets import presets
from outlier_moe.judging.count_recording import peaks_by_layer
from outlier_moe.judging.edge_counts import shape_of, write_edge_counts
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.report.inputs import ModelFiles, ReportInputs
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from tests.recordings import made_up_activations, write_recording
from tests.swept_tables import made_up_sweep
from tests.upcycling_tables import made_up_tables

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"

STUDY: dict[str, Any] = {
    "magnitude": 6.0,
    "layer_fraction": 0.25,
    "position_fraction": 0.06,
    "filter_systematic": {
        "presets": {
            "dettmers2022": {"rule": "systematic", "view": "linear_inputs"},
            "survey2025": {
                "rule": "systematic",
                "view": "linear_inputs",
                "layers": "sites",
                "unit": "feature_sequence",
            },
            "own_magnitude": {"rule": "systematic", "view": "residual", "magnitude": 8.0},
            "sun2024": {"rule": "massive", "view": "residual", "magnitude": 100.0, "median_ratio": 50.0},
        }
    },
    "compare_models": {"default_preset": "dettmers2022"},
}

MODELS = {
    "tiny-dense": ("dense", 0.1, 0.1, 1.0),
    "small-dense": ("dense", 1.0, 1.0, 1.6),
    "small-moe": ("moe", 7.0, 1.3, 0.7),
    "large-moe": ("moe", 46.7, 12.9, 1.2),
}


def compared_model(folder: Path, name: str, seed: int) -> ComparedModel:
    """Write a model's recording and what the cheap stages make of it."""
    kind, total, active, spread = MODELS[name]
    activations = made_up_activations(n_layers=4, shape=(3, 100, 48), seed=seed)
    activations = {site: (x * spread).astype(np.float32) for site, x in activations.items()}
    recording = write_recording(folder / name / "outliers", activations)
    _with_hostile_strings(recording.directory)
    chosen = presets(STUDY)
    features = systematic_features(recording, chosen).filter("is_systematic")
    peaks_by_layer(recording.layer_outliers()).write_parquet(folder / name / "layer_peaks.parquet")
    shapes = [shape for preset in chosen if (shape := shape_of(preset))]
    counts = folder / name / "edge_counts.json"
    write_edge_counts(recording, shapes, counts, least_layers=0.05, least_positions=0.01)
    facts = {"model": name, "kind": kind, "family": HOSTILE, "total_params_b": total, "active_params_b": active}
    nothing = dict.fromkeys(["n_experts", "top_k", "routing"])
    return ComparedModel({**facts, **nothing}, recording, features)


def _with_hostile_strings(directory: Path) -> None:
    """A token and a revision that would take the page over if they were not escaped."""
    peaks = pl.read_parquet(directory / "peaks.parquet")
    peaks.with_columns(text=pl.lit(HOSTILE)).write_parquet(directory / "peaks.parquet")
    run = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**run, "source": {"repo": HOSTILE}}))


def made_up_study(folder: Path, *, has_experiments: bool = True) -> ReportInputs:
    """Write the recordings of all models, and put together what their report is made of.

    Args:
        folder: Where to.
        has_experiments: Whether both training experiments were run, too.
    """
    models = [compared_model(folder, name, seed) for seed, name in enumerate(MODELS)]
    comparison = compare_models(models, presets(STUDY))
    files = {name: files_of(folder / name) for name in MODELS}
    inputs = ReportInputs(
        comparison.models,
        files,
        STUDY,
        features=comparison.features,
        overrides={"corpus": "own text"},
    )
    if not has_experiments:
        return inputs
    sweeps = {
        "scale_sweep": made_up_sweep(folder / "images", n_seeds=3, diverges=True),
        "lm_scale_sweep": made_up_sweep(folder / "text", n_seeds=1, diverges=False, sizes={"d8": 900}),
    }
    return replace(inputs, upcycling=made_up_tables(["simple", "smollm"]), sweeps=sweeps)


def files_of(folder: Path) -> ModelFiles:
    """The files of one model."""
    return ModelFiles(*(folder / name for name in ("outliers", "edge_counts.json", "layer_peaks.parquet")))
