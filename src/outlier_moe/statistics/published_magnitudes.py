"""Published outlier features and largest values, each held against a recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from outlier_moe.recording_files import Recording
from outlier_moe.statistics.published import Recorded, other_checkpoint
from outlier_moe.statistics.verdicts import VerifyOptions, incomparable, judged, rows_of, within
from outlier_moe.taps import VIEW_OF, Tap, View

_PRESET_OF_VIEW: dict[View, str] = {
    "linear_inputs": "dettmers2022",
    "residual": "residual",
    "residual_rms": "scale_free",
}


def known_outliers(
    recording: Recording, systematic: pl.DataFrame, facts: Recorded, options: VerifyOptions
) -> Iterator[dict[str, Any]]:
    """Rows of `Verification` without the model: every outlier feature published of it.

    Args:
        recording: The recording.
        systematic: Its systematic features, with the column `is_systematic`.
        facts: What its provenance says.
        options: The tolerances.
    """
    ranked: dict[str, pl.DataFrame] = {}
    for row in rows_of("known_outliers", facts):
        tap, feature = row["tap"], row["feature"]
        value = None if row["value"] is None else abs(row["value"])
        key = {
            "reference": "known_outliers",
            "claim": f"feature {feature} is an outlier at {tap}" + (f", |x| {value:g}" if value else ""),
            "tap": tap,
            "feature": feature,
            "published": value,
            "source": row["source"],
        }
        if reason := other_checkpoint(row["repo"], facts) or _no_feature(tap, feature, facts):
            yield {**key, **incomparable(reason)}
            continue
        if tap not in ranked:
            ranked[tap] = _ranked_features(recording, tap)
        yield {**key, **_feature_verdict(row, ranked[tap], systematic, facts, options)}


def _no_feature(tap: str, feature: int, facts: Recorded) -> str | None:
    if tap not in facts.taps:
        return f"the tap {tap} was not recorded"
    if feature >= facts.d_model:
        return f"the recorded model has but {facts.d_model} features"
    return None


def _ranked_features(recording: Recording, tap: str) -> pl.DataFrame:
    """Each feature's largest |x| over layers and sequences of a tap, and at first tokens, with its rank."""
    return (
        recording.layer_outliers()
        .filter(pl.col("tap") == tap)
        .group_by("feature")
        .agg(pl.col("peak").max(), first=pl.col("first_token_magnitude").max())
        .with_columns(rank=pl.col("peak").rank("min", descending=True))
        .collect()
    )


def _feature_verdict(
    row: dict[str, Any], ranked: pl.DataFrame, systematic: pl.DataFrame, facts: Recorded, options: VerifyOptions
) -> dict[str, Any]:
    found = ranked.filter(pl.col("feature") == row["feature"])
    if found.is_empty():
        return {**judged(False, "the feature stays below the recording's floor"), "measured": None}
    at_first = row["position"] == "first token"
    measured = float(found["first" if at_first else "peak"].item())
    rank = int(found["rank"].item())
    is_systematic, by = _systematic_by(row["tap"], row["feature"], systematic, facts, options)
    stands_out = rank <= options.top or is_systematic
    reason = f"rank {rank} of the tap's peaks" + by
    if row["value"] is None:
        return {**judged(stands_out, reason), "measured": measured}
    if at_first and not facts.has_bos and not _published_without_bos(row):
        return {
            **judged(stands_out, f"{reason}; values not compared, since recorded without a beginning-of-text token"),
            "measured": measured,
        }
    value = abs(row["value"])
    is_bound = str(row["note"]).startswith("at least")
    near = measured >= value / options.factor if is_bound else within(measured, value, options.factor)
    where = "at first tokens" if at_first else "anywhere"
    compared = f"|x| {measured:.4g} {where}, published {'at least ' if is_bound else ''}{value:g}"
    return {**judged(stands_out and near, f"{reason}; {compared}"), "measured": measured}


def _published_without_bos(row: dict[str, Any]) -> bool:
    # The project's own measurements put no token before the text unless the tokenizer does.
    return str(row["source"]).startswith("measured here")


def _systematic_by(
    tap: Tap, feature: int, systematic: pl.DataFrame, facts: Recorded, options: VerifyOptions
) -> tuple[bool, str]:
    """Whether the preset of the tap's view finds the feature systematic, unless it finds nearly all so."""
    preset = _PRESET_OF_VIEW[VIEW_OF[tap]]
    features = systematic.filter(preset=preset, first_token="included", is_systematic=True)["feature"].unique()
    if len(features) > options.most_systematic * facts.d_model:
        return False, f"; the preset {preset} finds {len(features)} of {facts.d_model} features, which tells nothing"
    is_systematic = feature in features
    return is_systematic, f"; {'' if is_systematic else 'not '}systematic by {preset}"


def maxima(recording: Recording, facts: Recorded, options: VerifyOptions) -> Iterator[dict[str, Any]]:
    """The same for the largest values published of it; the arguments are those of `known_outliers`."""
    for row in rows_of("published_maxima", facts):
        where = row["where"] or ""
        layer = int(where.split()[1]) if where.startswith("layer ") else None
        key = {
            "reference": "published_maxima",
            "claim": f"the largest |activation| is {abs(row['peak'])}" + (f" at {where}" if where else ""),
            "tap": "residual",
            "layer": layer,
            "published": float(abs(row["peak"])),
            "source": "arXiv 2605.15572",
        }
        if reason := other_checkpoint(row["repo"], facts):
            yield {**key, **incomparable(reason)}
        elif where.endswith("MLP output"):
            yield {**key, "tap": None, **incomparable("an MLP's output is not a recorded tap")}
        elif reason := _no_feature("residual", 0, facts):
            yield {**key, **incomparable(reason)}
        else:
            sites = recording.sites().filter(pl.col("tap") == "residual")
            sites = sites if layer is None else sites.filter(pl.col("layer") == layer)
            if sites.is_empty():
                yield {**key, **incomparable(f"the recorded model has but {facts.n_layers} layers")}
                continue
            measured = float(sites["top_magnitude"].cast(pl.Float64).max() or 0.0)  # type: ignore[arg-type]
            reason = (
                f"|x| {measured:.5g} in the residual stream over {facts.n_sequences * facts.sequence_length} tokens"
            )
            near = within(measured, key["published"], options.factor_of_maxima)
            yield {**key, **judged(near, f"{reason}; theirs is over some 17 million"), "measured": measured}
