"""The models of a study side by side."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.config.model_labels import ModelLabels, agreed_labels, read_labels
from outlier_moe.definitions.presets import Preset
from outlier_moe.definitions.taps import VIEWS, View
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import fraction, unanswered
from outlier_moe.judging.judged import judged_features
from outlier_moe.judging.sequence_counts import SequenceCounts
from outlier_moe.judging.stored_tables import stored_tables
from outlier_moe.statistics.comparable import on_one_text, text_of
from outlier_moe.statistics.degenerate import with_degenerate
from outlier_moe.tables import schemas
from outlier_moe.tables.comparison import LeftOut
from outlier_moe.tables.recording import Recording, read_recording

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComparedModel:
    """One model with its tables."""

    facts: Mapping[str, Any]
    """The registry's facts: `model`, `kind`, `family`, parameters, experts."""
    recording: Recording
    """Its recording."""
    features: pl.DataFrame
    """Its systematic features by every preset: `schemas.JudgedFeature`, or those rows of `schemas.Systematic`."""


class Comparison(NamedTuple):
    """The tables of `compare_models`."""

    models: pl.DataFrame
    """`schemas.ModelComparison`: one row per (model, preset, first token in or out)."""
    features: pl.DataFrame
    """`schemas.JudgedFeature` of every model that was judged, on whatever text, with the column `model`."""
    left_out: pl.DataFrame
    """`schemas.comparison.LeftOut`: models that no comparison may speak of: on another text than most, or recorded
    without what a preset asks for."""


class Judged(NamedTuple):
    """The result of `judged_models`."""

    models: list[ComparedModel]
    """Models with their systematic features."""
    left_out: pl.DataFrame
    """`schemas.comparison.LeftOut`: the others, whose recordings lack what a preset asks for."""


def judged_models(models: Iterable[tuple[Mapping[str, Any], Path, Path]], presets: list[Preset]) -> Judged:
    """Models with their systematic features, from their counts by sequence.

    Args:
        models: What the registry knows of each, its recording, and its counts by sequence.
        presets: The presets to judge by.

    Raises:
        StudyError: If a table cannot be read.
    """
    judged, left_out = [], LeftOut.create_empty()
    for facts, outliers, counts in models:
        recording = read_recording(outliers)
        if (reason := unanswered(recording, presets)) is not None:
            row = pl.DataFrame({"model": [facts["model"]], "reason": [reason]})
            left_out = pl.concat([left_out, row])
            continue
        features = judged_features(stored_tables(recording, SequenceCounts(counts), presets))
        judged.append(ComparedModel(facts, recording, features))
    return Judged(judged, left_out)


def compare_models(
    models: list[ComparedModel], presets: list[Preset], *, unjudged: pl.DataFrame | None = None
) -> Comparison:
    """Put models side by side, in the order given: those on the text that most were recorded on.

    Args:
        models: The models and their tables.
        presets: The presets they were judged by.
        unjudged: `LeftOut`, the models that could not be judged.

    Raises:
        StudyError: If a table cannot be read.
    """
    tables = [_rows(model, presets) for model in models]
    table = pl.concat([schemas.ModelComparison.create_empty(), *tables], how="diagonal_relaxed")
    table = schemas.ModelComparison.validate(table.select(schemas.ModelComparison.column_names()), cast=True)
    kept, left_out = on_one_text(table)
    left_out = left_out if unjudged is None else pl.concat([unjudged, left_out])
    for model, reason in left_out.select("model", "reason").iter_rows():
        log.warning("%s is left out of the comparison: %s", model, reason)
    columns = schemas.JudgedFeature.column_names()
    features = [model.features.select(pl.lit(model.facts["model"]).alias("model"), *columns) for model in models]
    joined = pl.concat(features) if features else schemas.JudgedFeature.create_empty().with_columns(model=pl.lit(""))
    return Comparison(kept, joined, left_out)


LARGEST_LOSS = math.log(sys.float_info.max)
"""Nats beyond which a perplexity is larger than any float64."""


def perplexity(recording: Recording) -> float | None:
    """The exponential of the mean next-token loss over all sequences; None if a loss is missing or it is no number."""
    losses = recording.sequences()["loss_nats"]
    if losses.is_empty() or losses.has_nulls():
        return None
    mean = float(losses.mean())  # type: ignore[arg-type]
    return math.exp(mean) if mean < LARGEST_LOSS else None


_KURTOSIS = ("kurtosis_of_feature_rms", "excess_kurtosis")


def _kurtosis(recording: Recording) -> dict[View, dict[str, float | None]]:
    """Of each view: the mean and the median over its sites of each site's mean over the sequences."""
    # What is not finite belongs to an activation that is not, which the comparison counts. In order: the last bit of a
    # mean depends on it.
    by_site = (
        recording.sites()
        .group_by(pl.col("tap").cast(pl.String), "layer", maintain_order=True)
        .agg(pl.col(name).filter(pl.col(name).is_finite()).mean() for name in _KURTOSIS)
    )
    found: dict[View, dict[str, float | None]] = {}
    for view, taps in VIEWS.items():
        of_view = by_site.filter(pl.col("tap").is_in(taps))
        means = {f"{name}_mean": of_view[name].mean() for name in _KURTOSIS}
        found[view] = {**means, **{f"{name}_median": of_view[name].median() for name in _KURTOSIS}}  # type: ignore[dict-item]
    return found


def labelled(model: ComparedModel) -> dict[str, Any]:
    """The registry's labels of a model, completed by its recording.

    Raises:
        StudyError: If the two contradict each other, or neither says what every model must have.
    """
    path = model.recording.directory / "run.json"
    id = str(model.facts["model"])
    facts = agreed_labels(model.facts, recorded_labels(model.recording), model=id, place=path)
    missing = [name for name in ("family", "kind", "total_params_b", "active_params_b") if facts.get(name) is None]
    if missing:
        raise StudyError(
            "Neither the registry nor the recording says all of a model.",
            file="config/models.yaml",
            key=", ".join(f"models.{id}.{name}" for name in missing),
            expected="values; recordings of earlier versions do not have them",
            got=f"{path} has none",
            remedy="Add the keys to the model's entry.",
        )
    return facts


def recorded_labels(recording: Recording) -> ModelLabels:
    """The labels in a recording; older versions have fewer."""
    run = recording.run
    if "labels" in run:
        return read_labels(run["labels"])
    total = None if run.get("n_parameters") is None else run["n_parameters"] / 1e9
    if "experts" not in run:
        return ModelLabels(total_params_b=total)
    if run["experts"] is None:
        return ModelLabels(kind="dense", total_params_b=total, active_params_b=total)
    routers = recording.routers()
    n_experts = None if routers is None or routers.is_empty() else int(routers["n_experts"].max())  # type: ignore[arg-type]
    return ModelLabels(kind="moe", total_params_b=total, n_experts=n_experts)


def _facts(model: ComparedModel) -> dict[str, Any]:
    """The columns that are the same for every preset."""
    run, facts = model.recording.run, labelled(model)
    n_parameters, n_embedding = run.get("n_parameters"), run.get("n_embedding_parameters")
    return {
        **facts,
        **{key: run[key] for key in ("d_model", "n_layers", "floor")},
        **text_of(run),
        "corpus": (run["tokens"].get("corpus") or {}).get("corpus"),
        "active_ratio": facts["active_params_b"] / facts["total_params_b"],
        "embedding_free_params_b": None
        if n_parameters is None or n_embedding is None
        else (n_parameters - n_embedding) / 1e9,
        "perplexity": perplexity(model.recording),
        "tokenizer_sha256": run["tokens"].get("tokenizer_sha256"),
        "n_nonfinite": model.recording.sites()["n_nonfinite"].sum(),
    }


def _rows(model: ComparedModel, presets: list[Preset]) -> pl.DataFrame:
    kurtosis = _kurtosis(model.recording)
    fractions = ["layer_fraction", "position_fraction", "position_fraction_per_site"]
    figures = model.features.group_by("preset", "first_token").agg(
        *[pl.col(name).mean().name.suffix("_mean") for name in fractions],
        *[pl.col(name).median().name.suffix("_median") for name in fractions],
        n_systematic=pl.col("feature").n_unique(),
        n_pairs=pl.len(),
        peak_median=pl.col("peak").median(),
        peak_largest=pl.col("peak").max(),
        n_values=pl.when(pl.col("n_values").is_not_null().any()).then(pl.col("n_values").sum()),
    )
    # A preset that finds nothing has a row as well.
    grid = pl.DataFrame(
        [
            {
                "preset": preset.name,
                "first_token": first_token,
                "counts_pairs": preset.unit == "feature_sequence",
                "counts_values": preset.rule == "systematic",
                **kurtosis[preset.view],
            }
            for preset in presets
            for first_token in schemas.first_token_enum.categories
        ],
        schema_overrides={"first_token": schemas.first_token_enum},
        infer_schema_length=None,
    )
    facts = pl.DataFrame([_facts(model)], infer_schema_length=None)
    rows = (
        grid.join(figures, on=["preset", "first_token"], how="left", maintain_order="left")
        .with_columns(
            pl.col("n_systematic").fill_null(0),
            n_pairs=pl.when("counts_pairs").then(pl.col("n_pairs").fill_null(0)),
            n_values=pl.when("counts_values").then(pl.col("n_values").fill_null(0)),
        )
        .join(facts, how="cross")
    )
    share = fraction(rows["n_systematic"], model.recording.run["d_model"]).alias("d_model_share")
    return with_degenerate(rows.with_columns(share))
