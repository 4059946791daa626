"""The page of all tables in the documentation. `python -m tests.tables_page` writes it; a test holds it to date."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import dataframely as dy
import polars as pl

from outlier_moe.tables import checked, comparison, moe, schemas, sweeps, tested, upcycling
from outlier_moe.tables.meanings import MEANINGS
from outlier_moe.tables.titles import SWEPT

PAGE = Path(__file__).parent.parent / "docs" / "tables.md"

HEAD = """# Tables

Every table that a study writes, with its columns. This page is written from `src/outlier_moe/tables` by
`python -m tests.tables_page`.

Magnitudes are in the units of the model's activations, losses in nats a token, times in seconds, shares from 0 to 1.
Layers, features, sequences, positions and experts are counted from 0. The columns of a key tell a table's rows apart.
Tables named `.arrow` are Arrow IPC, all others Parquet. Their metadata
has a checksum and the thresholds they were made by.

`run.json` beside a recording has its provenance: versions, hashes, options, device, times and memory.
"""

TABLES: Mapping[str, Mapping[str, type[dy.Schema]]] = {
    "resources and tokens": {
        "resources/corpora/{corpus}.parquet": schemas.Document,
        "results/{model}/tokens.arrow": schemas.Token,
    },
    "results/{model}": {
        "outliers/layer_*.arrow": schemas.LayerOutlier,
        "outliers/any_layer.arrow": schemas.AnyLayerOutlier,
        "outliers/sites.parquet": schemas.Site,
        "outliers/peaks.parquet": schemas.Peak,
        "outliers/sequences.parquet": schemas.Sequence,
        "outliers/experts.parquet": moe.Expert,
        "outliers/routers.parquet": moe.Router,
        "systematic.parquet": schemas.Systematic,
    },
    "results/comparison": {
        "models.parquet": schemas.ModelComparison,
        "features.parquet": schemas.JudgedFeature,
        "left_out.parquet": comparison.LeftOut,
        "intervals.parquet": comparison.FigureInterval,
        "differences.parquet": comparison.FigureDifference,
        "stability.parquet": comparison.Stability,
        "resamples.parquet": comparison.ModelResample,
        "phase_transitions.parquet": tested.PhaseTransition,
        "trends.parquet": tested.TrendComparison,
        "dense_moe.parquet": tested.RankTestResult,
        "pairs.parquet": tested.MatchedPair,
        "groups.parquet": tested.GroupSummary,
        "verification.parquet": checked.Verification,
        "super_experts.parquet": checked.SuperExpert,
        "outlier_routing.parquet": checked.OutlierRouting,
        "expert_routing.parquet": checked.ExpertRouting,
    },
    "results/upcycle": {
        "summary.parquet": upcycling.UpcyclingRun,
        "checkpoints.parquet": upcycling.UpcyclingCheckpoint,
        "outliers.parquet": upcycling.UpcyclingOutlier,
        "history.parquet": upcycling.UpcyclingStep,
        "samples.parquet": upcycling.UpcyclingSample,
        "experts.parquet": upcycling.ExpertLoad,
    },
    "results/scale_sweep and results/lm_scale_sweep": {
        "summary.parquet": sweeps.SweepSummary,
        "runs.parquet": sweeps.SweptRunFacts,
        "figures.parquet": sweeps.SweptFigure,
        "dynamics.parquet": sweeps.SweepCheckpoint,
        "trends.parquet": sweeps.SweepTrend,
        "comparisons.parquet": sweeps.SweepComparison,
    },
}
MOMENTS = {"phase1": "at the end of phase 1", "transition": "of the mixture before its training", "final": "at the end"}


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield HEAD
    for folder, tables in TABLES.items():
        yield f"\n## {folder}\n"
        for path, schema in tables.items():
            yield f"\n### {path}\n\n"
            yield from (f"{line}\n" for line in _prose(schema))
            yield "| column | type | meaning |\n|---|---|---|\n"
            for name, column in schema.columns().items():
                yield f"| {_cell(f'`{name}`')} | {_type(column)} | {_sentence(meaning(schema, name))} |\n"


def meaning(schema: type[dy.Schema], column: str) -> str:
    """What a column means: what stands beneath it, else what its name means everywhere.

    Raises:
        KeyError: If nothing says it.
    """
    for owner in schema.__mro__:
        if column in (documented := _documented(owner)):
            return documented[column]
    return MEANINGS.get(column) or _of_figure(schema, column)


def _of_figure(schema: type[dy.Schema], column: str) -> str:
    """A figure of the experiments: of a moment, of matched loss, or as it is."""
    name, _, moment = column.rpartition("_")
    if moment in MOMENTS:
        measure = {"kurtosis": "kurtosis_of_feature_rms"}.get(name, name)
        return f"{MEANINGS[measure]}, {MOMENTS[moment]}"
    if name in SWEPT and moment == "matched":
        return f"{SWEPT[name].axis}, mean of the seeds at matched training loss"
    mean = ", mean of the seeds at the end" if schema is sweeps.SweepSummary else ""
    return f"{SWEPT[column].axis}{mean}"


def _documented(owner: type) -> dict[str, str]:
    """The docstrings beneath a class' columns; none of classes that were made without a source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):
        return {}
    body = getattr(tree.body[0], "body", [])
    return {
        target.id: inspect.cleandoc(beneath.value.value)
        for above, beneath in zip(body, body[1:], strict=False)
        if isinstance(above, ast.Assign)
        and isinstance(beneath, ast.Expr)
        and isinstance(beneath.value, ast.Constant)
        and isinstance(beneath.value.value, str)
        for target in above.targets
        if isinstance(target, ast.Name)
    }


def _prose(schema: type[dy.Schema]) -> Iterator[str]:
    """A table's description without its path, which is the heading, and its key."""
    text = re.sub(r"^`[^`]+`(?: of a model)?: ", "", inspect.getdoc(schema) or "")
    if text and text != inspect.getdoc(dy.Schema):
        yield f"{text[0].upper()}{text[1:]}\n"
    if keys := [name for name, column in schema.columns().items() if column.primary_key]:
        yield f"Key: {', '.join(f'`{name}`' for name in keys)}.\n"


def _type(column: dy.Column) -> str:
    dtype = column.dtype
    name = f"list of {dtype.inner}" if isinstance(dtype, pl.List) else str(dtype.base_type())
    return f"{name}, or null" if column.nullable else name


def _sentence(text: str) -> str:
    text = _cell(text).removesuffix(".")
    return f"{text[0].upper()}{text[1:]}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text("".join(lines()))
