"""The inputs of the report, read from the tables; what cannot be read or compared is left out and named."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.definitions.presets import Preset, presets
from outlier_moe.errors import StudyError
from outlier_moe.judging.edge_counts import read_edge_counts
from outlier_moe.plots.thresholds import Curves, threshold_curves
from outlier_moe.statistics.comparable import on_one_text
from outlier_moe.tables.comparison import LeftOut as LeftOutTable
from outlier_moe.tables.recording import Recording, read_recording
from outlier_moe.tables.schemas import JudgedFeature
from outlier_moe.terminal.figures import plain

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model."""

    outliers: Path
    """Its recording."""
    edge_counts: Path
    """Its counts at every edge."""
    layer_peaks: Path
    """The largest |x| of each feature at each tap and layer: `peaks_by_layer`."""


def _no_features() -> pl.DataFrame:
    return JudgedFeature.create_empty().with_columns(model=pl.lit(""))


@dataclass(frozen=True)
class ReportInputs:
    """Everything that a report is made of."""

    models: pl.DataFrame
    """Rows of `tables.schemas.ModelComparison`."""
    files: Mapping[str, ModelFiles]
    """The files of each of its models."""
    study: Mapping[str, Any]
    """`magnitude`, `layer_fraction`, `position_fraction`, `filter_systematic` and `compare_models` of the study."""
    features: pl.DataFrame = field(default_factory=_no_features)
    """`schemas.JudgedFeature`, with the column `model`."""
    left_out: pl.DataFrame = field(default_factory=LeftOutTable.create_empty)
    """`schemas.comparison.LeftOut`: models that the comparison did not take in."""
    statistics: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """The tables of `schemas.comparison` that there are, by the names of their files."""
    upcycling: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """The tables of the experiment dense -> MoE, by the names of their files, if it was run."""
    sweeps: Mapping[str, Mapping[str, pl.DataFrame]] = field(default_factory=dict)
    """The tables of each sweep over optimisers and scales, by the names of their files, if it was run."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """The study's `--config` overrides."""
    configfiles: Sequence[str] = ()
    """The study's `--configfile` paths."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Models of the study that do not exist, each with its reason."""

    @cached_property
    def presets(self) -> list[Preset]:
        """The definitions of the study."""
        return presets(self.study)

    @property
    def default_preset(self) -> Preset:
        """The preset that is shown first."""
        name = self.study["compare_models"]["default_preset"]
        return next(preset for preset in self.presets if preset.name == name)


class LeftOut(NamedTuple):
    """Something that the report leaves out."""

    what: str
    """The models, or the comparison."""
    reason: str
    """The reason."""


class CountedRange(NamedTuple):
    """The thresholds that the counts of one shape answer."""

    floor: float
    """The lowest edge."""
    n_edges: int
    """Edges from there at which anything is kept."""
    least_layers: float
    """The least layer fraction."""
    least_positions: float
    """The least position fraction."""


@dataclass(frozen=True)
class ReportedModel:
    """One model with its tables."""

    facts: Mapping[str, Any]
    """Its row of the comparison, the figures of any preset aside."""
    recording: Recording
    """Its recording."""
    ranges: list[CountedRange]
    """What its counts at every edge can be asked for."""
    curves: Curves
    """Its threshold curves."""
    features: pl.DataFrame
    """Its systematic features, by every preset."""
    files: ModelFiles
    """Where its tables are."""

    @property
    def name(self) -> str:
        """The model's id."""
        return self.facts["model"]

    @property
    def counts_documents(self) -> dict[str, Any]:
        """Its counts as they lie in their file, by shape."""
        return json.loads(self.files.edge_counts.read_text())["shapes"]


class ReportContents(NamedTuple):
    """What could be read."""

    models: list[ReportedModel]
    """The models in the report, in the comparison's order."""
    comparison: pl.DataFrame
    """Their rows of the comparison."""
    left_out: list[LeftOut]
    """The models and comparisons that are left out."""


def read_contents(inputs: ReportInputs) -> ReportContents:
    """Read the tables of all models; each thing left out is also a line in the log."""
    left_out = [LeftOut(*skipped) for skipped in inputs.skipped.items()]
    left_out += [LeftOut(*row) for row in inputs.left_out.select("model", "reason").iter_rows()]
    comparable = on_one_text(inputs.models)
    left_out += [LeftOut(*row) for row in comparable.left_out.select("model", "reason").iter_rows()]
    facts = comparable.comparison.unique("model", keep="first", maintain_order=True)
    models = []
    for row in facts.iter_rows(named=True):
        try:
            models.append(_reported(row, inputs))
        except StudyError as error:
            left_out.append(LeftOut(row["model"], " ".join(str(error).split())))
    comparison = comparable.comparison.filter(pl.col("model").is_in([model.name for model in models]))
    left_out += _what_is_missing(models)
    for item in left_out:
        log.warning("left out of the report: %s: %s", item.what, item.reason)
    return ReportContents(models, comparison, left_out)


def _reported(facts: Mapping[str, Any], inputs: ReportInputs) -> ReportedModel:
    files = inputs.files[facts["model"]]
    features = inputs.features.filter(model=facts["model"])
    # What they take in memory is let go of before the next model's are read.
    counts = read_edge_counts(files.edge_counts)
    ranges = [CountedRange(of.floor, of.n_edges, of.least_layers, of.least_positions) for of in counts.values()]
    curves = threshold_curves(counts, inputs.presets)
    return ReportedModel(facts, read_recording(files.outliers), ranges, curves, features, files)


def _what_is_missing(models: list[ReportedModel]) -> list[LeftOut]:
    """Comparisons that these models do not allow, or allow only in part."""
    if not models:
        return [LeftOut("everything", "no model of the study is done yet; run snakemake and look again")]
    # One model, or models of one kind, are a whole study: nothing is missing from it.
    found = []
    silent = [model.name for model in models if model.facts["perplexity"] is None]
    if silent:
        found.append(LeftOut("pictures against perplexity", f"no loss was recorded for {', '.join(silent)}"))
    found += _other_runs(models)
    # Not left out, but said: what the recordings say of themselves.
    said: dict[str, list[str]] = defaultdict(list)
    for model in models:
        for caveat in model.recording.run.get("caveats", []):
            said[caveat].append(model.name)
    return found + [LeftOut(", ".join(names), caveat) for caveat, names in said.items()]


def _by_value(models: list[ReportedModel], value: Callable[[Mapping[str, Any]], Any]) -> dict[Any, str]:
    """The models with each value of something in their run.json."""
    names: dict[Any, list[str]] = defaultdict(list)
    for model in models:
        names[value(model.recording.run)].append(model.name)
    return {key: ", ".join(of) for key, of in sorted(names.items())}


def _other_runs(models: list[ReportedModel]) -> list[LeftOut]:
    """Comparisons that recordings with other floors or libraries do not allow."""
    found = []
    floors = _by_value(models, lambda run: run["floor"])
    if len(floors) > 1:
        top, names = [*floors.items()][-1]
        reason = f"{names} recorded nothing below that floor, so that sliders start there"
        found.append(LeftOut(f"magnitudes below {plain(top, 6)}", reason))
    for library in ("outlier_moe", "transformers", "torch"):
        versions = _by_value(models, lambda run, of=library: str(run.get("versions", {}).get(of, "unknown")))
        if len(versions) > 1:
            said = "; ".join(f"{version}: {names}" for version, names in versions.items())
            found.append(LeftOut(f"exact equality across versions of {library}", f"recorded with {said}"))
    return found
