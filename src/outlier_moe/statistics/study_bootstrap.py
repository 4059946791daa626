"""The intervals of a whole study, from every model's counts by sequence."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import polars as pl

from outlier_moe.filtering import Preset
from outlier_moe.recording_files import read_recording
from outlier_moe.schemas.comparison import FigureInterval, ModelResample, Stability
from outlier_moe.statistics.bootstrap import (
    BootstrapOptions,
    bootstrap_comparison,
    bootstrap_differences,
    resample_model,
)
from outlier_moe.statistics.sequence_counts import SequenceCounts
from outlier_moe.statistics.stability import stability
from outlier_moe.statistics.stored_tables import stored_tables

log = logging.getLogger(__name__)

MOST_CHOICES = 500
"""Choices of 4 or 8 of a model's sequences that stand for all of them."""

REVISION = 1
"""Raised when the same counts give other resamples, so that kept ones are not taken for them."""


class StudyFiles(NamedTuple):
    """The files of one model."""

    outliers: Path
    """Its recording."""
    counts: Path
    """Its counts by sequence."""


class StudyBootstrap(NamedTuple):
    """The tables of `bootstrap_study`."""

    intervals: pl.DataFrame
    """`FigureInterval`: every figure of every model and preset."""
    differences: pl.DataFrame
    """`FigureDifference`: each two models on one text, by the presets looked at closely."""
    stability: pl.DataFrame
    """`Stability`, by the presets looked at closely."""
    resamples: pl.DataFrame
    """`ModelResample` of the presets looked at closely, for tests over several models."""


def bootstrap_study(
    models: Mapping[str, StudyFiles],
    presets: list[Preset],
    *,
    closely: list[str],
    options: BootstrapOptions,
    confidence_level: float,
    kept: Path,
) -> StudyBootstrap:
    """Resample every model's sequences, and take the intervals of its figures and of the differences of two models.

    A model's resamples are kept, so that another model in the study, or going back and forth, costs only what is new.

    Args:
        models: The files of each model.
        presets: The definitions to judge by.
        closely: Names of those whose differences of models and stability are looked at as well.
        options: How sequences are resampled.
        confidence_level: Of the intervals.
        kept: The folder of the resamples that are kept, one file a model.

    Raises:
        StudyError: If a table cannot be read.
    """
    looked_at = [preset for preset in presets if preset.name in closely]
    resamples: list[pl.DataFrame] = [ModelResample.create_empty()]
    intervals: list[pl.DataFrame] = [FigureInterval.create_empty()]
    steady: list[pl.DataFrame] = [Stability.create_empty()]
    for model, files in models.items():
        recording, counts = read_recording(files.outliers), SequenceCounts(files.counts)
        path, key = kept / f"{model}.parquet", _key(files, presets, options)
        of_model = _kept(path, key)
        tables = list(stored_tables(recording, counts, presets if of_model is None else looked_at))
        if of_model is None:
            of_model = resample_model(recording, presets, model=model, options=options, tables=tables)
            kept.mkdir(parents=True, exist_ok=True)
            of_model.write_parquet(path, metadata={"key": key})
        resamples.append(of_model.filter(pl.col("preset").is_in(closely)))
        intervals.append(bootstrap_comparison(of_model, confidence_level=confidence_level))
        closer = [table for table in tables if table.preset in looked_at]
        steady.append(stability(recording, looked_at, model=model, most_choices=MOST_CHOICES, tables=closer))
        log.info("%s: %d figures resampled", model, len(of_model))
    together = pl.concat(resamples)
    pairs = _pairs(together)
    differences = bootstrap_differences(
        together.filter(first_token="included"), pairs=pairs, confidence_level=confidence_level
    )
    return StudyBootstrap(pl.concat(intervals), differences, pl.concat(steady), together)


def _key(files: StudyFiles, presets: list[Preset], options: BootstrapOptions) -> str:
    """What decides a model's resamples."""
    run = hashlib.sha256((files.outliers / "run.json").read_bytes()).hexdigest()
    counted = [(path.name, path.stat().st_size) for path in sorted(files.counts.iterdir())]
    told = [REVISION, run, counted, [asdict(preset) for preset in presets], asdict(options)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _kept(path: Path, key: str) -> pl.DataFrame | None:
    """The resamples that were kept, if they are these."""
    try:
        if pl.read_parquet_metadata(path).get("key") != key:
            return None
        return pl.read_parquet(path)
    except (FileNotFoundError, pl.exceptions.PolarsError):
        return None


def _pairs(resamples: pl.DataFrame) -> list[tuple[str, str]]:
    """Each two models on one text."""
    texts = resamples.select("model", "corpus_sha256").unique(maintain_order=True).rows()
    return [(one, other) for (one, text), (other, its) in combinations(texts, 2) if text == its]
