"""Published outlier features and largest values, each held against a recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from outlier_moe.definitions.taps import VIEW_OF, Tap, View
from outlier_moe.statistics.published import OWN, Recorded, other_checkpoint, other_index
from outlier_moe.statistics.verdicts import VerifyOptions, incomparable, is_within, rows_of, verdict_columns
from outlier_moe.tables.recording import Recording
from outlier_moe.terminal.figures import plain

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
        key = {"reference": "known_outliers", "tap": tap, "feature": feature, "source": row["source"]}
        outlier = {**key, "claim": f"feature {feature} is an outlier at {tap}"}
        value = None if row["value"] is None else {**key, **_value_claim(row)}
        reason = other_checkpoint(row["repo"], facts) or other_index(row) or _no_feature(tap, feature, facts)
        if reason is not None:
            yield from ({**claim, **incomparable(reason)} for claim in (outlier, value) if claim)
            continue
        if tap not in ranked:
            ranked[tap] = _ranked_features(recording, tap)
        found = ranked[tap].filter(pl.col("feature") == feature)
        yield {**outlier, **_rank_verdict(row, found, systematic, facts, options)}
        if value:
            yield {**value, **_value_verdict(row, found, facts, options)}


def _value_claim(row: dict[str, Any]) -> dict[str, Any]:
    value = abs(row["value"])
    where = ", first tokens" if row["position"] == "first token" else ""
    size = f"at least {plain(value, 6)}" if _is_bound(row) else plain(value, 6)
    return {"claim": f"feature {row['feature']} has |x| {size} at {row['tap']}{where}", "published": value}


def _is_bound(row: dict[str, Any]) -> bool:
    return str(row["note"]).startswith("at least")


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


_BELOW_FLOOR = "the feature stays below the recording's floor"


def _rank_verdict(
    row: dict[str, Any], found: pl.DataFrame, systematic: pl.DataFrame, facts: Recorded, options: VerifyOptions
) -> dict[str, Any]:
    """Whether a feature stands out at its tap, which no particular token at the start is needed for."""
    if found.is_empty():
        return {**verdict_columns(False, _BELOW_FLOOR), "measured": None}
    rank = int(found["rank"].item())
    is_systematic, by = _systematic_by(row["tap"], row["feature"], systematic, facts, options)
    stands_out = rank <= options.top or is_systematic
    return {
        **verdict_columns(stands_out, f"rank {rank} of the tap's peaks{by}"),
        "measured": float(found["peak"].item()),
    }


def _value_verdict(row: dict[str, Any], found: pl.DataFrame, facts: Recorded, options: VerifyOptions) -> dict[str, Any]:
    """Whether a feature has its published value, where the recorded sequences begin like the published ones."""
    at_first = row["position"] == "first token"
    measured = None if found.is_empty() else float(found["first" if at_first else "peak"].item())
    if not facts.has_bos and not _published_without_bos(row):
        place = "of a beginning-of-text token" if at_first else "of a place not told, which may be the text's beginning"
        reason = f"published {place}; the recorded sequences begin with other tokens"
        return {**incomparable(reason), "measured": measured}
    if measured is None:
        return {**verdict_columns(False, _BELOW_FLOOR), "measured": None}
    value, is_bound = abs(row["value"]), _is_bound(row)
    near = measured >= value / options.factor if is_bound else is_within(measured, value, options.factor)
    where = "at first tokens" if at_first else "anywhere"
    reason = f"|x| {plain(measured)} {where}, published {'at least ' if is_bound else ''}{plain(value, 6)}"
    return {**verdict_columns(near, reason), "measured": measured}


def _published_without_bos(row: dict[str, Any]) -> bool:
    # The project's own measurements put no token before the text unless the tokenizer does.
    return str(row["source"]).startswith(OWN)


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
        layer, where = row["layer"], row["where"] or ""
        place = where if layer is None else f"layer {layer} {where}".strip()
        key = {
            "reference": "published_maxima",
            "claim": f"the largest |activation| is {plain(abs(row['peak']), 6)}" + (f" at {place}" if place else ""),
            "tap": "residual",
            "layer": layer,
            "published": float(abs(row["peak"])),
            "source": "arXiv 2605.15572",
        }
        if reason := other_checkpoint(row["repo"], facts):
            yield {**key, **incomparable(reason)}
        elif where:
            yield {**key, "tap": None, **incomparable(f"{where} is not a recorded tap")}
        elif layer is not None and (reason := other_index(row)):
            yield {**key, **incomparable(f"its layer is {reason}")}
        elif reason := _no_feature("residual", 0, facts):
            yield {**key, **incomparable(reason)}
        else:
            sites = recording.sites().filter(pl.col("tap") == "residual")
            sites = sites if layer is None else sites.filter(pl.col("layer") == layer)
            if sites.is_empty():
                yield {**key, **incomparable(f"the recorded model has but {facts.n_layers} layers")}
                continue
            measured = float(sites["top_magnitude"].cast(pl.Float64).max() or 0.0)  # type: ignore[arg-type]
            n_tokens = facts.n_sequences * facts.sequence_length
            reason = f"|x| {plain(measured, 5)} in the residual stream over {n_tokens:,} tokens"
            near = is_within(measured, key["published"], options.factor_of_maxima)
            yield {**key, **verdict_columns(near, f"{reason}; theirs is over some 17 million"), "measured": measured}
