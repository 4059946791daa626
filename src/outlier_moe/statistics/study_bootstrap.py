"""The intervals of a whole study, from every model's counts by sequence."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.definitions.presets import Preset, definition_facts
from outlier_moe.definitions.taps import View
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import unanswered
from outlier_moe.judging.sequence_counts import SequenceCounts
from outlier_moe.judging.stored_tables import stored_tables
from outlier_moe.statistics.bootstrap import BootstrapOptions, resample_model
from outlier_moe.statistics.comparable import text_of
from outlier_moe.statistics.resampled_figures import Figures
from outlier_moe.statistics.resampled_intervals import bootstrap_comparison, bootstrap_differences, unmoved_figures
from outlier_moe.statistics.stability import stability
from outlier_moe.tables.comparison import FigureInterval, ModelResample, Stability
from outlier_moe.tables.files import read_table, table_facts, write_table
from outlier_moe.tables.recording import read_recording

log = logging.getLogger(__name__)


REVISION = 2
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
    """`FigureDifference`: each two models that may be compared, by the presets looked at closely."""
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
    answered: dict[str, dict[str, Any]] = {}
    for model, files in models.items():
        recording = read_recording(files.outliers)
        if (reason := unanswered(recording, presets)) is None:
            answered[model] = text_of(recording.run)
        else:
            log.warning("%s is not resampled: %s", model, reason)

    def of_model(model: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        resampled, steady = _of_model(models[model], presets, looked_at, model, options, kept)
        intervals = bootstrap_comparison(resampled, confidence_level=confidence_level)
        return resampled.filter(pl.col("preset").is_in(closely)), intervals, steady

    nothing = ModelResample.create_empty(), FigureInterval.create_empty(), Stability.create_empty()
    # Much of it holds no lock: what polars reads, and the loop over draws.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        tables = zip(nothing, *threads.map(of_model, answered), strict=True)
    resamples, intervals, steady = map(pl.concat, tables)
    # What the comparison does not hold against each other has no difference either.
    pairs = [(one, other) for one, other in combinations(answered, 2) if answered[one] == answered[other]]
    differences = bootstrap_differences(
        resamples.filter(first_token="included"), pairs=pairs, confidence_level=confidence_level
    )
    return StudyBootstrap(intervals, differences, steady, resamples)


def _of_model(
    files: StudyFiles,
    presets: list[Preset],
    looked_at: list[Preset],
    model: str,
    options: BootstrapOptions,
    kept: Path,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A model's resamples by all presets, and its stability by those that are looked at."""
    recording, counts = read_recording(files.outliers), SequenceCounts(files.counts)
    before = KeptResamples.of(kept / f"{model}.parquet", _key(files, options))
    moved = [preset for preset in presets if preset not in before.presets]
    tables = list(stored_tables(recording, counts, moved + [one for one in looked_at if one not in moved]))
    resampled = before.table.filter(pl.col("preset").is_in([one.name for one in presets if one not in moved]))
    if moved:
        of_moved = [table for table in tables if table.preset in moved]
        known = before.unmoved_figures()
        new = resample_model(recording, moved, model=model, options=options, tables=of_moved, known=known)
        resampled = pl.concat([resampled, new])
    resampled = _in_order(resampled, presets)
    if moved:
        before.keep(resampled, presets)
    log.info("%s: %d figures resampled, by %d of %d presets", model, len(resampled), len(moved), len(presets))
    closer = [table for table in tables if table.preset in looked_at]
    return resampled, stability(recording, looked_at, model=model, tables=closer)


def _in_order(resamples: pl.DataFrame, presets: list[Preset]) -> pl.DataFrame:
    """A model's rows in one order, whichever of them were kept."""
    names = [preset.name for preset in presets]
    return resamples.sort(pl.col("preset").cast(pl.Enum(names)), "first_token", "figure")


def _key(files: StudyFiles, options: BootstrapOptions) -> str:
    """What decides a model's resamples, the presets aside."""
    run = hashlib.sha256((files.outliers / "run.json").read_bytes()).hexdigest()
    counted = [(path.name, path.stat().st_size) for path in sorted(files.counts.iterdir())]
    return hashlib.sha256(json.dumps([REVISION, run, counted, asdict(options)]).encode()).hexdigest()


@dataclass(frozen=True)
class KeptResamples:
    """A model's last resamples, so that going back and forth costs only the presets that moved."""

    path: Path
    """Their file."""
    key: str
    """What decides them beside the presets."""
    presets: list[Preset]
    """Those that they are of; none if there are none, or they are of other counts or options."""
    table: pl.DataFrame
    """`ModelResample`."""

    @classmethod
    def of(cls, path: Path, key: str) -> KeptResamples:
        """Those of a file, as far as they are still right."""
        try:
            facts = table_facts(path)
            if facts.get("key") == key:
                presets = [Preset(**preset) for preset in facts["presets"]]
                return cls(path, key, presets, read_table(path))
        # What is damaged is made again.
        except (FileNotFoundError, ValueError, pl.exceptions.PolarsError, StudyError):
            pass
        return cls(path, key, [], ModelResample.create_empty())

    def unmoved_figures(self) -> dict[View, Figures]:
        """The figures of each view that no threshold moves."""
        return {preset.view: unmoved_figures(self.table.filter(preset=preset.name)) for preset in self.presets}

    def keep(self, table: pl.DataFrame, presets: list[Preset]) -> None:
        """Keep a table in place of what was there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, self.path, {"key": self.key, **definition_facts(presets)}, compression="lz4")
