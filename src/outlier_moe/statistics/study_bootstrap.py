"""The intervals of a whole study, from every model's counts by sequence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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

    def of_model(model: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        recording, counts = read_recording(models[model].outliers), SequenceCounts(models[model].counts)
        path, key = kept / f"{model}.parquet", _key(models[model], presets, options)
        resampled = _kept(path, key)
        tables = list(stored_tables(recording, counts, presets if resampled is None else looked_at))
        if resampled is None:
            resampled = resample_model(recording, presets, model=model, options=options, tables=tables)
            kept.mkdir(parents=True, exist_ok=True)
            resampled.write_parquet(path, metadata={"key": key})
        closer = [table for table in tables if table.preset in looked_at]
        log.info("%s: %d figures resampled", model, len(resampled))
        return (
            resampled.filter(pl.col("preset").is_in(closely)),
            bootstrap_comparison(resampled, confidence_level=confidence_level),
            stability(recording, looked_at, model=model, most_choices=MOST_CHOICES, tables=closer),
        )

    nothing = ModelResample.create_empty(), FigureInterval.create_empty(), Stability.create_empty()
    # Much of it holds no lock: what polars reads, and the loop over draws.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        tables = zip(nothing, *threads.map(of_model, models), strict=True)
    resamples, intervals, steady = map(pl.concat, tables)
    pairs = _pairs(resamples)
    differences = bootstrap_differences(
        resamples.filter(first_token="included"), pairs=pairs, confidence_level=confidence_level
    )
    return StudyBootstrap(intervals, differences, steady, resamples)


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
