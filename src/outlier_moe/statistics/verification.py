"""Published figures of a model compared with its recording, row by row.

- A feature is reproduced if it is among the features with the largest peaks of its tap, or systematic there by a preset
  that finds few.
- Its value, where one is published, is a claim of its own: reproduced if the measured |x| is within a factor of it.
  Values of others stand at a beginning-of-text token, and are compared where recorded sequences begin with one.
- The largest value of a model is reproduced if the residual stream's is within a (wider) factor: others saw more text.
- A count of the 2025 survey is reproduced within a relative tolerance, on the survey's text alone.
- A super expert is reproduced if the published rule finds it; its peak, a claim of its own, if it is within the factor.

Layers, experts and features are compared by number, so that both must count from 0, as recordings do. The tables of
`reference` say what each row counts from, and are read as counts from 0; a row whose base is not known, and one that
versions of its source disagree on, is not comparable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import polars as pl

from outlier_moe.statistics.comparison import perplexity
from outlier_moe.statistics.published import Recorded, other_checkpoint, other_index, other_text, recorded
from outlier_moe.statistics.published_magnitudes import known_outliers, maxima
from outlier_moe.statistics.reference import reference_table
from outlier_moe.statistics.super_experts import SuperExperts, forming_layers, super_experts
from outlier_moe.statistics.verdicts import VerifyOptions, incomparable, is_within, rows_of, verdict_columns
from outlier_moe.tables.checked import Verification
from outlier_moe.tables.recording import Recording
from outlier_moe.tables.schemas import first_token_enum
from outlier_moe.terminal.figures import plain


def verify(
    recording: Recording,
    systematic: pl.DataFrame,
    *,
    model: str,
    experts: pl.DataFrame | None = None,
    revision: str = "main",
    copy_of: str | None = None,
    published_id: str | None = None,
    presets: Collection[str] | None = None,
    options: VerifyOptions | None = None,
) -> pl.DataFrame:
    """Hold a recording against everything published of its model.

    Args:
        recording: The recording.
        systematic: Its table `Systematic`, or the rows of it that are systematic.
        model: The model's id in the registry, by which the survey's rows go.
        experts: Its rows of `tables.moe.Expert`; None if there are none.
        revision: The revision that the registry asks of the hub.
        copy_of: The repository of which the registry says that the model is a copy.
        published_id: The id by which the survey's rows know it; by default its own.
        presets: Names of those that it was judged by; by default those in the table.
        options: The tolerances.

    Returns:
        The table `Verification`; empty if nothing is published of the model.
    """
    options = options or VerifyOptions()
    facts = recorded(recording.run, revision=revision, copy_of=copy_of)
    names = systematic["preset"].unique().to_list() if presets is None else presets
    if "is_systematic" not in systematic.columns:
        systematic = systematic.with_columns(is_systematic=pl.lit(True))
    found = None if experts is None else super_experts(experts, forming_layers(recording))
    rows = [
        *known_outliers(recording, systematic, facts, options),
        *maxima(recording, facts, options),
        *_known_super_experts(found, facts, options),
        *_survey(recording, systematic if "survey2025" in names else None, published_id or model, facts, options),
    ]
    usual = {"tap": None, "layer": None, "expert": None, "feature": None, "published": None, "measured": None}
    if not rows:
        return Verification.create_empty()
    table = pl.DataFrame([{"model": model, **usual, **row} for row in rows], infer_schema_length=None)
    return Verification.validate(table.select(Verification.column_names()), cast=True)


def _known_super_experts(
    found: SuperExperts | None, facts: Recorded, options: VerifyOptions
) -> Iterator[dict[str, Any]]:
    for row in rows_of("known_super_experts", facts):
        layer, expert, peak = row["layer"], row["expert"], row["peak"]
        key = {"reference": "known_super_experts", "layer": layer, "expert": expert, "source": "arXiv 2507.23279"}
        is_super = {**key, "claim": f"expert {expert} of layer {layer} is super"}
        claim = f"expert {expert} of layer {layer} puts out |x| {peak}"
        puts_out = None if peak is None else {**key, "claim": claim, "published": float(peak)}
        reason = other_checkpoint(row["repo"], facts)
        if reason is None and found is None:
            reason = "there is no experts.parquet in the recording"
        if reason is not None or found is None:
            yield from ({**one, **incomparable(str(reason))} for one in (is_super, puts_out) if one)
            continue
        yield {**is_super, **_super_verdict(row, found, facts)}
        if puts_out:
            yield {**puts_out, **_peak_verdict(row, found, options)}


def _unclear(row: dict[str, Any]) -> str | None:
    """Why it is unclear which expert a row means."""
    disputed = f"disputed: {row['note']}" if row["status"] == "disputed" else None
    base = other_index(row)
    return "; ".join(filter(None, [disputed, base and f"its layer is {base}"])) or None


def _row_of(row: dict[str, Any], found: SuperExperts) -> dict[str, Any] | None:
    """The row of `SuperExpert` of a published expert."""
    this = found.experts.filter(pl.col("layer") == row["layer"], pl.col("expert") == row["expert"])
    return None if this.is_empty() else this.row(0, named=True)


def _super_verdict(row: dict[str, Any], found: SuperExperts, facts: Recorded) -> dict[str, Any]:
    this = _row_of(row, found)
    measured = None if this is None else float(this["peak"])
    ours = ", ".join(f"{r['layer']}/{r['expert']}" for r in found.experts.filter("is_super").iter_rows(named=True))
    reason = f"super here (layer/expert): {ours or 'none'}"
    if unclear := _unclear(row):
        return {**incomparable(f"{unclear}; {reason}"), "measured": measured}
    if found.reason is not None and "residual" not in facts.taps:
        return {
            **incomparable("the layers that form massive activations need the tap residual"),
            "measured": measured,
        }
    if this is None:
        return {**verdict_columns(False, f"the expert has no token; {reason}"), "measured": None}
    return {**verdict_columns(this["is_super"], reason), "measured": measured}


def _peak_verdict(row: dict[str, Any], found: SuperExperts, options: VerifyOptions) -> dict[str, Any]:
    this = _row_of(row, found)
    measured = None if this is None else float(this["peak"])
    if unclear := _unclear(row):
        return {**incomparable(unclear), "measured": measured}
    if measured is None:
        return {**verdict_columns(False, "the expert has no token"), "measured": None}
    near = is_within(measured, float(row["peak"]), options.factor)
    return {**verdict_columns(near, f"|x| {plain(measured)}, published {plain(row['peak'], 6)}"), "measured": measured}


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
            "claim": f"{plain(value, 6)} {unit}",
            "published": value,
            "measured": measured,
            "source": "the 2025 survey",
        }
        reason = other_text(facts)
        if reason is None and systematic is None and column != "perplexity_approx":
            reason = "no feature was judged by the preset survey2025"
        if reason is not None:
            yield {**key, **incomparable(reason)}
        elif measured is None:
            yield {**key, **incomparable("not measured here")}
        else:
            near = abs(measured - value) <= most
            yield {
                **key,
                **verdict_columns(
                    near, f"{plain(measured)} here, {plain(value, 6)} published; tolerance {plain(most, 3)}"
                ),
            }
