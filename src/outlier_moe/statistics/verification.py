"""Whether a recording shows what others have published of the same model, row by row, and what cannot be compared.

- A feature is reproduced if it is among the features with the largest peaks of its tap, or systematic there by a preset
  that finds few; and, where a value is published, if the measured |x| is within a factor of it.
- The largest value of a model is reproduced if the residual stream's is within a (wider) factor: others saw more text.
- A count of the 2025 survey is reproduced within a relative tolerance, on the survey's text alone.
- A super expert is reproduced if the published rule finds it, and its peak is within the factor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from outlier_moe.comparison import perplexity
from outlier_moe.recording_files import Recording
from outlier_moe.reference import reference_table
from outlier_moe.schemas import first_token_enum
from outlier_moe.schemas.comparison import Verification
from outlier_moe.statistics.published import Recorded, is_sibling, other_checkpoint, other_text, recorded
from outlier_moe.statistics.super_experts import SuperExperts, forming_layers, super_experts
from outlier_moe.taps import VIEW_OF, Tap, View

Verdict = Literal["reproduced", "not reproduced", "not comparable"]

_PRESET_OF_VIEW: dict[View, str] = {
    "linear_inputs": "dettmers2022",
    "residual": "residual",
    "residual_rms": "scale_free",
}


@dataclass(frozen=True)
class VerifyOptions:
    """From when on a figure counts as reproduced."""

    top: int = 10
    """Rank up to which a feature's peak is among the largest of its tap."""
    most_systematic: float = 0.1
    """Share of the features up to which a preset's being systematic says something of one of them."""
    factor: float = 2.0
    """Largest factor between a published and a measured magnitude."""
    factor_of_maxima: float = 4.0
    """The same for a model's largest value over all text."""
    count_tolerance: float = 0.25
    """Largest relative difference of a count."""
    points: float = 10.0
    """Largest difference of two percentages."""
    perplexity_tolerance: float = 0.15
    """Largest relative difference of a perplexity; the survey's are read off a plot."""


def verify(
    recording: Recording,
    systematic: pl.DataFrame,
    *,
    model: str,
    experts: pl.DataFrame | None = None,
    revision: str = "main",
    presets: Collection[str] | None = None,
    options: VerifyOptions | None = None,
) -> pl.DataFrame:
    """Hold a recording against everything published of its model.

    Args:
        recording: The recording.
        systematic: Its table `Systematic`, or the rows of it that are systematic.
        model: The model's id in the registry, by which the survey's rows go.
        experts: Its rows of `schemas_moe.Expert`; None if there are none.
        revision: The revision that the registry asks of the hub.
        presets: Names of those that it was judged by; by default those in the table.
        options: The tolerances.

    Returns:
        The table `Verification`; empty if nothing is published of the model.
    """
    options = options or VerifyOptions()
    facts = recorded(recording.run, revision=revision)
    names = systematic["preset"].unique().to_list() if presets is None else presets
    if "is_systematic" not in systematic.columns:
        systematic = systematic.with_columns(is_systematic=pl.lit(True))
    found = None if experts is None else super_experts(experts, forming_layers(recording))
    rows = [
        *_known_outliers(recording, systematic, facts, options),
        *_maxima(recording, facts, options),
        *_known_super_experts(found, facts, options),
        *_survey(recording, systematic if "survey2025" in names else None, model, facts, options),
    ]
    usual = {"tap": None, "layer": None, "expert": None, "feature": None, "published": None, "measured": None}
    if not rows:
        return Verification.create_empty()
    table = pl.DataFrame([{"model": model, **usual, **row} for row in rows], infer_schema_length=None)
    return Verification.validate(table.select(Verification.column_names()), cast=True)


def _rows_of(name: Any, facts: Recorded) -> Iterator[dict[str, Any]]:
    """The rows of a reference table on the model or a sibling of it."""
    for row in reference_table(name).iter_rows(named=True):
        if facts.repo is not None and is_sibling(row["repo"], facts.repo):
            yield row


def _within(measured: float, published: float, factor: float) -> bool:
    return published / factor <= measured <= published * factor


def _judged(is_reproduced: bool, reason: str) -> dict[str, Any]:
    verdict: Verdict = "reproduced" if is_reproduced else "not reproduced"
    return {"verdict": verdict, "reason": reason}


def _incomparable(reason: str) -> dict[str, Any]:
    verdict: Verdict = "not comparable"
    return {"verdict": verdict, "reason": reason}


def _known_outliers(
    recording: Recording, systematic: pl.DataFrame, facts: Recorded, options: VerifyOptions
) -> Iterator[dict[str, Any]]:
    ranked: dict[str, pl.DataFrame] = {}
    for row in _rows_of("known_outliers", facts):
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
            yield {**key, **_incomparable(reason)}
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
        return {**_judged(False, "the feature stays below the recording's floor"), "measured": None}
    at_first = row["position"] == "first token"
    measured = float(found["first" if at_first else "peak"].item())
    rank = int(found["rank"].item())
    is_systematic, by = _systematic_by(row["tap"], row["feature"], systematic, facts, options)
    stands_out = rank <= options.top or is_systematic
    reason = f"rank {rank} of the tap's peaks" + by
    if row["value"] is None:
        return {**_judged(stands_out, reason), "measured": measured}
    if at_first and not facts.has_bos and not _published_without_bos(row):
        return {
            **_judged(stands_out, f"{reason}; values not compared, since recorded without a beginning-of-text token"),
            "measured": measured,
        }
    value = abs(row["value"])
    is_bound = str(row["note"]).startswith("at least")
    near = measured >= value / options.factor if is_bound else _within(measured, value, options.factor)
    where = "at first tokens" if at_first else "anywhere"
    compared = f"|x| {measured:.4g} {where}, published {'at least ' if is_bound else ''}{value:g}"
    return {**_judged(stands_out and near, f"{reason}; {compared}"), "measured": measured}


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


def _maxima(recording: Recording, facts: Recorded, options: VerifyOptions) -> Iterator[dict[str, Any]]:
    for row in _rows_of("published_maxima", facts):
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
            yield {**key, **_incomparable(reason)}
        elif where.endswith("MLP output"):
            yield {**key, "tap": None, **_incomparable("an MLP's output is not a recorded tap")}
        elif reason := _no_feature("residual", 0, facts):
            yield {**key, **_incomparable(reason)}
        else:
            sites = recording.sites().filter(pl.col("tap") == "residual")
            sites = sites if layer is None else sites.filter(pl.col("layer") == layer)
            if sites.is_empty():
                yield {**key, **_incomparable(f"the recorded model has but {facts.n_layers} layers")}
                continue
            measured = float(sites["top_magnitude"].cast(pl.Float64).max() or 0.0)  # type: ignore[arg-type]
            reason = (
                f"|x| {measured:.5g} in the residual stream over {facts.n_sequences * facts.sequence_length} tokens"
            )
            near = _within(measured, key["published"], options.factor_of_maxima)
            yield {**key, **_judged(near, f"{reason}; theirs is over some 17 million"), "measured": measured}


def _known_super_experts(
    found: SuperExperts | None, facts: Recorded, options: VerifyOptions
) -> Iterator[dict[str, Any]]:
    for row in _rows_of("known_super_experts", facts):
        layer, expert, peak = row["layer"], row["expert"], row["peak"]
        key = {
            "reference": "known_super_experts",
            "claim": f"expert {expert} of layer {layer} is super" + (f", |x| {peak}" if peak else ""),
            "layer": layer,
            "expert": expert,
            "published": None if peak is None else float(peak),
            "source": "arXiv 2507.23279",
        }
        if reason := other_checkpoint(row["repo"], facts):
            yield {**key, **_incomparable(reason)}
        elif found is None:
            yield {**key, **_incomparable("there is no experts.parquet in the recording")}
        elif found.reason is not None and "residual" not in facts.taps:
            yield {**key, **_incomparable("the layers that form massive activations need the tap residual")}
        else:
            yield {**key, **_expert_verdict(row, found, options)}


def _expert_verdict(row: dict[str, Any], found: SuperExperts, options: VerifyOptions) -> dict[str, Any]:
    ours = ", ".join(f"{r['layer']}/{r['expert']}" for r in found.experts.filter("is_super").iter_rows(named=True))
    reason = f"super here (layer/expert): {ours or 'none'}"
    this = found.experts.filter(pl.col("layer") == row["layer"], pl.col("expert") == row["expert"])
    measured = None if this.is_empty() else float(this["peak"].item())
    if row["status"] == "disputed":
        return {**_incomparable(f"disputed: {row['note']}; {reason}"), "measured": measured}
    if measured is None:
        return {**_judged(False, f"the expert has no token; {reason}"), "measured": None}
    is_super = bool(this["is_super"].item())
    near = row["peak"] is None or _within(measured, float(row["peak"]), options.factor)
    compared = "" if row["peak"] is None else f"|x| {measured:.4g}, published {row['peak']}; "
    return {**_judged(is_super and near, compared + reason), "measured": measured}


_PAIR = {
    "preset": pl.String,
    "first_token": first_token_enum,
    "is_systematic": pl.Boolean,
    "layer_fraction": pl.Float64,
    "position_fraction": pl.Float64,
}


def _survey(
    recording: Recording, systematic: pl.DataFrame | None, model: str, facts: Recorded, options: VerifyOptions
) -> Iterator[dict[str, Any]]:
    published = reference_table("published_survey2025").filter(pl.col("model") == model)
    if published.is_empty():
        return
    row = published.row(0, named=True)
    rows = pl.DataFrame(schema=_PAIR) if systematic is None else systematic
    pairs = rows.filter("is_systematic", preset="survey2025", first_token="included")
    mean = {name: pairs[name].mean() for name in ("layer_fraction", "position_fraction")}
    per_cent = {name: None if value is None else 100 * float(value) for name, value in mean.items()}  # type: ignore[arg-type]
    count, perplexity_tolerance = options.count_tolerance, options.perplexity_tolerance
    claims: list[tuple[str, str, float | None, float]] = [
        ("n_outliers", "(feature, sequence) pairs", float(len(pairs)), count * row["n_outliers"]),
        ("mean_layer_pct", "% of the layers, mean", per_cent["layer_fraction"], options.points),
        ("mean_position_pct", "% of the positions, mean", per_cent["position_fraction"], options.points),
        (
            "perplexity_approx",
            "perplexity",
            perplexity(recording),
            perplexity_tolerance * (row["perplexity_approx"] or 0.0),
        ),
    ]
    for column, unit, measured, most in claims:
        if row[column] is None:
            continue
        value = float(row[column])
        key = {
            "reference": "published_survey2025",
            "claim": f"{value:g} {unit}",
            "published": value,
            "measured": measured,
            "source": "the 2025 survey",
        }
        reason = other_text(facts)
        if reason is None and systematic is None and column != "perplexity_approx":
            reason = "no feature was judged by the preset survey2025"
        if reason is not None:
            yield {**key, **_incomparable(reason)}
        elif measured is None:
            yield {**key, **_incomparable("not measured here")}
        else:
            near = abs(measured - value) <= most
            yield {**key, **_judged(near, f"{measured:.4g} here, {value:g} published; tolerance {most:.3g}")}
