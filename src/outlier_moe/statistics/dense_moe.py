"""Dense models against MoE models: at like size, at like perplexity, and by how sparse and of what kind a MoE is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from outlier_moe.statistics.comparable import false_discovery_rates, on_one_text
from outlier_moe.statistics.matching import match
from outlier_moe.statistics.rank_tests import RankTest, correlated, paired, several, unpaired
from outlier_moe.statistics.significance import verdict
from outlier_moe.tables.tested import GroupSummary, MatchedPair, RankTestResult

MatchedBy = Literal["total_params_b", "active_params_b", "perplexity"]
MATCHED_BY: tuple[MatchedBy, ...] = ("total_params_b", "active_params_b", "perplexity")

MEASURES = ("n_systematic", "d_model_share", "layer_fraction_mean", "position_fraction_mean", "peak_median")
"""The figures that are compared."""


@dataclass(frozen=True)
class DenseMoeOptions:
    """How models are matched and tested."""

    most_factor: float = 2.0
    """Largest factor between two models' parameters (or perplexities) for their pair to be tested."""
    n_nearest: int = 2
    """Dense models listed for each MoE model."""
    confidence_level: float = 0.95
    """Of the effects' intervals."""
    seed: int = 0
    """Decides the random arrangements, where there are too many to try all."""


class DenseMoeComparison(NamedTuple):
    """The tables of `compare_dense_moe`."""

    pairs: pl.DataFrame
    """`MatchedPair`: one row per pair and figure."""
    tests: pl.DataFrame
    """`RankTestResult`: one row per question and figure."""
    groups: pl.DataFrame
    """`GroupSummary`: one row per kind, routing or family and figure."""
    left_out: pl.DataFrame
    """`LeftOut`: the models that no row speaks of."""


def compare_dense_moe(comparison: pl.DataFrame, *, options: DenseMoeOptions | None = None) -> DenseMoeComparison:
    """Hold dense models against MoE models.

    Perplexity is per token: two models matched by it are alike in it only if their tokenizers are. What takes both
    kinds is asked of studies with both alone, and a model by itself is held against nothing.

    Args:
        comparison: The table `ModelComparison`.
        options: How to match and test.
    """
    options = options or DenseMoeOptions()
    kept, left_out = on_one_text(comparison)
    kept = kept.with_columns(active_ratio=pl.col("active_params_b") / pl.col("total_params_b"))
    pairs, tests, groups = [], [], []
    for (preset, first_token), rows in kept.group_by("preset", "first_token", maintain_order=True):
        if len(rows) < 2:
            continue
        key = {"preset": preset, "first_token": first_token}
        found = [pair for by in MATCHED_BY for pair in _pairs(rows, by, options)]
        pairs += [{**key, **pair} for pair in found]
        tests += [{**key, **test} for test in _tests(rows, found, options)]
        groups += [{**key, **group} for group in _groups(rows)]
    return DenseMoeComparison(_table(pairs, MatchedPair), _test_table(tests), _table(groups, GroupSummary), left_out)


def _pairs(rows: pl.DataFrame, by: MatchedBy, options: DenseMoeOptions) -> list[dict[str, Any]]:
    known = rows.filter(pl.col(by).is_not_null())
    moe, dense = known.filter(kind="moe"), known.filter(kind="dense")
    if moe.is_empty() or dense.is_empty():
        return []
    values = [table[by].cast(pl.Float64).to_numpy() for table in (moe, dense)]
    matches = match(*values, n_nearest=options.n_nearest, most_factor=options.most_factor)
    pairs = []
    for found in matches:
        one, other = moe.row(found.moe, named=True), dense.row(found.dense, named=True)
        of_pair = {
            "matched_by": by,
            "moe": one["model"],
            "dense": other["model"],
            "moe_x": one[by],
            "dense_x": other[by],
            **{name: getattr(found, name) for name in ("rank", "factor", "is_matched")},
        }
        for measure in MEASURES:
            figures = one[measure], other[measure]
            difference = None if None in figures else figures[0] - figures[1]
            pairs.append(
                {**of_pair, "y": measure, "moe_y": figures[0], "dense_y": figures[1], "difference": difference}
            )
    return pairs


def _tests(rows: pl.DataFrame, pairs: list[dict[str, Any]], options: DenseMoeOptions) -> Iterator[dict[str, Any]]:
    shared = {"confidence_level": options.confidence_level, "seed": options.seed}
    kinds = set(rows["kind"].cast(pl.String))
    for measure in MEASURES:
        known = rows.filter(pl.col(measure).is_not_null())
        moe, dense = known.filter(kind="moe"), known.filter(kind="dense")
        sizes = {"y": measure, "n_moe": len(moe), "n_dense": len(dense), "n_pairs": None}
        if len(kinds) > 1:
            yield from _of_both_kinds(moe, dense, [pair for pair in pairs if pair["y"] == measure], sizes, options)
        sparse = [("sparsity_of_moe", moe)] if "moe" in kinds else []
        for question, chosen in sparse + ([("sparsity_of_all", known)] if len(kinds) > 1 else []):
            for kind in ("kendall", "spearman"):
                test = correlated(_values(chosen, "active_ratio"), _values(chosen, measure), kind=kind, **shared)
                counted = {"n_dense": 0} if question == "sparsity_of_moe" else {}
                yield {**sizes, **counted, "question": question, "test": kind, **_figures(test)}
        for by in (by for by in ("routing", "family") if _labelled(rows, by)[by].n_unique() > 1):
            of_groups = [_values(group, measure) for _, group in _labelled(known, by).group_by(by, maintain_order=True)]
            test = several(of_groups, seed=options.seed)
            yield {**sizes, "question": f"by_{by}", "test": "kruskal_wallis", **_figures(test)}


def _of_both_kinds(
    moe: pl.DataFrame,
    dense: pl.DataFrame,
    pairs: list[dict[str, Any]],
    sizes: Mapping[str, Any],
    options: DenseMoeOptions,
) -> Iterator[dict[str, Any]]:
    """One figure of the MoE models against the dense ones' (those that have it), in matched pairs and over all."""
    shared = {"confidence_level": options.confidence_level, "seed": options.seed}
    without = [name for name, models in (("MoE", moe), ("dense", dense)) if models.is_empty()]
    silent = RankTest(reason=f"no {without[0]} model has the figure") if without else None
    for by in MATCHED_BY:
        tested = [pair for pair in pairs if pair["matched_by"] == by and pair["is_matched"]]
        differences = np.array([p["difference"] for p in tested if p["difference"] is not None], np.float64)
        named = {"question": f"matched_{by}", "test": "signed_rank", "n_pairs": len(differences)}
        yield {**sizes, **named, **_figures(silent or paired(differences, **shared))}
    values = [_values(models, sizes["y"]) for models in (moe, dense)]
    test = silent or unpaired(*values, **shared)
    yield {**sizes, "question": "dense_against_moe", "test": "mann_whitney", **_figures(test)}


def _values(rows: pl.DataFrame, column: str) -> np.ndarray:
    return rows[column].cast(pl.Float64).to_numpy()


def _figures(test: RankTest) -> dict[str, Any]:
    return test._asdict()


def _labelled(rows: pl.DataFrame, by: str) -> pl.DataFrame:
    """Rows that all have a routing; a dense model's is `dense`, a MoE model's that is not known is `unknown`."""
    unnamed = pl.when(pl.col("kind") == "dense").then(pl.lit("dense")).otherwise(pl.lit("unknown"))
    return rows.with_columns(pl.col(by).cast(pl.String).fill_null(unnamed))


def _groups(rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    for by in (by for by in ("kind", "routing", "family") if _labelled(rows, by)[by].n_unique() > 1):
        for (group,), members in _labelled(rows, by).group_by(by, maintain_order=True):
            for measure in MEASURES:
                values = members[measure].drop_nulls().cast(pl.Float64)
                yield {
                    "by": by,
                    "group": group,
                    "y": measure,
                    "n_models": len(values),
                    "median": values.median(),
                    "smallest": values.min(),
                    "largest": values.max(),
                    "reason": None if len(values) else "no model of the group has the figure",
                }


def _table(rows: list[dict[str, Any]], schema: type[MatchedPair] | type[GroupSummary]) -> pl.DataFrame:
    table = pl.DataFrame(rows, infer_schema_length=None) if rows else schema.create_empty()
    return schema.validate(table.select(schema.column_names()), cast=True)


def _test_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    if not rows:
        return RankTestResult.create_empty()
    table = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("p_value").cast(pl.Float64))
    table = table.with_columns(q_value=false_discovery_rates(table["p_value"]))
    # Groups differ in no direction.
    direction = pl.when(pl.col("test") != "kruskal_wallis").then("effect")
    table = table.with_columns(verdict(direction))
    return RankTestResult.validate(table.select(RankTestResult.column_names()), cast=True)
