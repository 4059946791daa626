"""Which models of a comparison are comparable, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.tables.comparison import LeftOut

_TEXT = ["corpus_sha256", "n_sequences", "n_tokens"]


class Comparable(NamedTuple):
    """Comparable models."""

    comparison: pl.DataFrame
    """Their rows."""
    left_out: pl.DataFrame
    """The models left out, as rows of `LeftOut`."""


def text_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a recording's provenance that decide what it is comparable with; columns of `ModelComparison`.

    Args:
        run: run.json.
    """
    return {
        "corpus_sha256": run["tokens"]["corpus_sha256"],
        "n_sequences": run["n_sequences"],
        "n_tokens": run["n_sequences"] * run["sequence_length"],
    }


def on_one_text(comparison: pl.DataFrame) -> Comparable:
    """The models recorded on the text, and on as many tokens of it, that most were recorded on.

    A longer text affects more layers, so that counts of another length are as little comparable as those of another
    text.

    Args:
        comparison: The table `ModelComparison`.
    """
    named = pl.col("corpus") if "corpus" in comparison.columns else pl.lit(None, pl.String)
    texts = comparison.select("model", *_TEXT, corpus=named).unique(maintain_order=True)
    if texts.is_empty():
        return Comparable(comparison, LeftOut.create_empty())
    most = texts.group_by(_TEXT, maintain_order=True).len().sort("len", descending=True, maintain_order=True).row(0)
    names = texts.filter(pl.col("corpus_sha256") == most[0])["corpus"].drop_nulls()
    is_common = pl.all_horizontal(pl.col(name) == value for name, value in zip(_TEXT, most[:-1], strict=True))
    left_out = texts.filter(~is_common).select(
        "model",
        reason=pl.format(
            "recorded on {} tokens in {} sequences of the text {}; most models on {} in {} of {}",
            pl.col("n_tokens"),
            pl.col("n_sequences"),
            _text_name(pl.col("corpus"), pl.col("corpus_sha256")),
            pl.lit(most[2]),
            pl.lit(most[1]),
            _text_name(pl.lit(names.first() if len(names) else None, pl.String), pl.lit(most[0])),
        ),
    )
    return Comparable(comparison.filter(is_common), LeftOut.validate(left_out, cast=True))


def _text_name(name: pl.Expr, sha256: pl.Expr) -> pl.Expr:
    """A text's name and the beginning of its hash; the latter alone where the name is not known."""
    short = sha256.str.head(12)
    return pl.coalesce(pl.format("{} ({})", name, short), short)


def false_discovery_rates(p_values: pl.Series) -> pl.Series:
    """Benjamini-Hochberg's adjusted p-values, over those of a table that exist."""
    # The comparison, which needs no test, starts faster without it.
    from scipy import stats

    adjusted = pl.Series(p_values.name, [None] * len(p_values), dtype=pl.Float64)
    known = p_values.is_not_null()
    if not known.any():
        return adjusted
    return adjusted.scatter(known.arg_true(), stats.false_discovery_control(p_values.filter(known).to_numpy()))


def false_discovery_rates_within(p_values: pl.Series, families: pl.Series) -> pl.Series:
    """Benjamini-Hochberg's adjusted p-values, each family of tests by itself; none for a test that is in no family."""
    found = [
        false_discovery_rates(
            p_values.zip_with((families == family).fill_null(False), pl.Series([None], dtype=pl.Float64))
        )
        for family in families.drop_nulls().unique(maintain_order=True)
    ]
    adjusted = pl.DataFrame([of.alias(str(index)) for index, of in enumerate(found)])
    if adjusted.is_empty():
        return pl.Series(p_values.name, [None] * len(p_values), dtype=pl.Float64)
    return adjusted.select(pl.coalesce(pl.all())).to_series().alias(p_values.name)
