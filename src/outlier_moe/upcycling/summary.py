"""The summary of the experiment: history, checkpoints and experts of all runs, and a row for each arm."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.errors import StudyError
from outlier_moe.tables.completing import completed
from outlier_moe.tables.files import read_table
from outlier_moe.tables.upcycling import (
    ExpertLoad,
    UpcyclingCheckpoint,
    UpcyclingOutlier,
    UpcyclingRun,
    UpcyclingSample,
    UpcyclingStep,
)
from outlier_moe.terminal.figures import plain, with_ends
from outlier_moe.terminal.presentation import Column

TABLE = {
    "pair": Column("pair"),
    "seed": Column("seed"),
    "arm": Column("arm"),
    "loss_before_nats": Column("loss\nbefore", "decimal"),
    "boundary_jump_nats": Column("jump", "text"),
    "final_loss_nats": Column("final", "text"),
    "load_entropy": Column("load\nentr.", "decimal"),
    "n_dead": Column("dead", "decimal"),
    "expert_distance": Column("dist.", "decimal"),
    "peak_transition": Column("peak,\ninit", "magnitude"),
    "peak_final": Column("peak,\nend", "magnitude"),
    "kurtosis_final": Column("kurt.,\nend", "decimal"),
    "n_systematic_final": Column("outl.", "count"),
}
BOUNDARY = {
    "pair": Column("pair"),
    "seed": Column("seed"),
    "arm": Column("arm"),
    "loss_before_nats": Column("loss before\n(nats)"),
    "loss_after_nats": Column("after\n(nats)"),
    "boundary_jump_nats": Column("jump\n(nats)"),
    "is_equivalent": Column("same\nmodel"),
    "largest_logit_difference": Column("largest logit\ndifference"),
    "drop_nats": Column("drop by the\nend (nats)"),
}
"""What happens where the dense model becomes a mixture, as people read it."""
SAMPLES = "samples.json"
TAP = "residual"
"""Where the summary's peak and kurtosis are read; the table of checkpoints has every tap."""


@dataclass(frozen=True)
class RunFiles:
    """The files of one arm of one seed."""

    pair: str
    seed: int
    arm: str
    dense_run: Path
    """The folder of phase 1, which all arms share."""
    arm_run: Path
    """The folder of phase 2."""
    dense_outliers: Path
    """The figures of phase 1's checkpoints."""
    arm_outliers: Path
    """The figures of phase 2's checkpoints."""
    equivalence: Path | None
    """The proof; None for the control."""

    @property
    def key(self) -> dict[str, Any]:
        """Pair, seed and arm: what identifies the run."""
        return {"pair": self.pair, "seed": self.seed, "arm": self.arm}


class UpcyclingTables(NamedTuple):
    """The tables of the experiment."""

    summary: pl.DataFrame
    """`schemas.upcycling.UpcyclingRun`."""
    checkpoints: pl.DataFrame
    """`schemas.upcycling.UpcyclingCheckpoint`."""
    outliers: pl.DataFrame
    """`schemas.upcycling.UpcyclingOutlier`."""
    history: pl.DataFrame
    """`schemas.upcycling.UpcyclingStep`."""
    experts: pl.DataFrame
    """`schemas.upcycling.ExpertLoad`."""
    samples: pl.DataFrame
    """`schemas.upcycling.UpcyclingSample`."""


def summarise_upcycling(runs: Sequence[RunFiles], *, preset: str) -> UpcyclingTables:
    """Put the runs of the experiment together.

    Args:
        runs: All arms of all seeds and pairs.
        preset: The definition whose systematic features the summary counts.
    """
    checkpoints, outliers, histories, experts, summary = [], [], [], [], []
    samples: list[dict[str, Any]] = []
    for run in runs:
        last = _last_step(run.dense_run)
        checkpoints += _checkpoints(run, last)
        experts += _experts(run, last)
        outliers += [
            _labelled(read_table(run.dense_outliers), run.key, phase=1, after=0),
            _labelled(read_table(run.arm_outliers), run.key, phase=2, after=last),
        ]
        histories.append(_labelled(_history(run.arm_run), run.key, phase=2, after=last))
        if run == next(other for other in runs if other.dense_run == run.dense_run):
            histories.append(_labelled(_history(run.dense_run), {**run.key, "arm": "phase 1"}, phase=1, after=0))
            samples += _samples(run.dense_run, {**run.key, "arm": "phase 1"}, phase=1)
        samples += _samples(run.arm_run, run.key, phase=2)
        summary.append(_summary(run, preset))
    return UpcyclingTables(
        summary=completed(UpcyclingRun, pl.DataFrame(summary, infer_schema_length=None)),
        checkpoints=completed(UpcyclingCheckpoint, pl.DataFrame(checkpoints, infer_schema_length=None)),
        outliers=completed(UpcyclingOutlier, pl.concat(outliers, how="diagonal")),
        history=completed(UpcyclingStep, pl.concat(histories, how="diagonal_relaxed")),
        experts=completed(ExpertLoad, pl.DataFrame(experts, infer_schema_length=None)),
        samples=completed(UpcyclingSample, pl.DataFrame(samples, infer_schema_length=None)),
    )


def _document(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(
            "A file of a training run cannot be read.",
            file=path,
            expected="the whole JSON that the run wrote",
            got=f"{type(error).__name__}: {error}",
            remedy=f"Train it again: snakemake --force {path.parent}",
        ) from error


def _evaluations(run: Path) -> list[dict[str, Any]]:
    return _document(run / "evaluations.json")


def _samples(run: Path, key: dict[str, Any], *, phase: int) -> list[dict[str, Any]]:
    stored = _document(run / SAMPLES)
    # A prompt that is asked twice is answered twice alike.
    by_prompt = {sample["prompt"]: sample["sample"] for sample in stored}
    return [{**key, "phase": phase, "prompt": prompt, "continuation": text} for prompt, text in by_prompt.items()]


def _history(run: Path) -> pl.DataFrame:
    return read_table(run / "training_history.parquet")


def _last_step(run: Path) -> int:
    return _evaluations(run)[-1]["step"]


def _labelled(table: pl.DataFrame, key: dict[str, Any], *, phase: int, after: int) -> pl.DataFrame:
    labels = [pl.lit(value).alias(name) for name, value in key.items()]
    return table.select(*labels, pl.lit(phase).alias("phase"), pl.all()).with_columns(step=pl.col("step") + after)


def _checkpoints(run: RunFiles, last: int) -> list[dict[str, Any]]:
    rows = []
    for phase, folder, after in ((1, run.dense_run, 0), (2, run.arm_run, last)):
        for found in _evaluations(folder):
            place = {**run.key, "phase": phase, "step": found["step"] + after}
            rows.append({**place, "held_out_loss_nats": found["held_out_loss_nats"], **_use_of_experts(found)})
    return rows


def _experts(run: RunFiles, last: int) -> list[dict[str, Any]]:
    return [
        {
            **run.key,
            "step": found["step"] + last,
            "layer": layer,
            "expert": expert,
            "n_tokens": n_tokens,
            "load_share": n_tokens / sum(of_layer["load"]),
        }
        for found in _evaluations(run.arm_run)
        for layer, of_layer in enumerate(found.get("layers", []))
        for expert, n_tokens in enumerate(of_layer["load"])
    ]


def _use_of_experts(found: dict[str, Any]) -> dict[str, float | int | None]:
    """Means over the layers: entropy of the load (1: even), experts without a token, distances; and equal twins."""
    layers = found.get("layers")
    if not layers:
        return dict.fromkeys(("load_entropy", "n_dead", "expert_distance", "least_expert_distance", "n_twins"))
    distances = [value for layer in layers for value in layer["distances"]]
    return {
        "load_entropy": _mean([_entropy(layer["load"]) for layer in layers]),
        "n_dead": _mean([layer["load"].count(0) for layer in layers]),
        "expert_distance": _mean(distances),
        "least_expert_distance": min(distances, default=None),
        "n_twins": distances.count(0.0),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _entropy(load: Sequence[int]) -> float:
    if len(load) == 1:
        return 1.0
    shares = [n / sum(load) for n in load if n]
    return max(0.0, -sum(share * math.log(share) for share in shares) / math.log(len(load)))


def _summary(run: RunFiles, preset: str) -> dict[str, Any]:
    dense, arm = _evaluations(run.dense_run), _evaluations(run.arm_run)
    before, after, final = (found["held_out_loss_nats"] for found in (dense[-1], arm[0], arm[-1]))
    proof = {} if run.equivalence is None else _document(run.equivalence)
    times = {
        "phase1": (run.dense_outliers, -1),
        "transition": (run.arm_outliers, 0),
        "final": (run.arm_outliers, -1),
    }
    at_times = [_outlier_figures(path, index, time, preset) for time, (path, index) in times.items()]
    return {
        **run.key,
        "loss_before_nats": before,
        "loss_after_nats": after,
        "boundary_jump_nats": after - before,
        "final_loss_nats": final,
        "drop_nats": before - final,
        "largest_logit_difference": proof.get("largest"),
        "is_equivalent": proof.get("passed"),
        **_use_of_experts(arm[-1]),
        **{name: value for figures in at_times for name, value in figures.items()},
        "n_steps": int(arm[-1]["step"]),
        "time_s": float(_history(run.arm_run)["time_s"].sum()),
    }


def _outlier_figures(path: Path, index: int, time: str, preset: str) -> dict[str, Any]:
    table = read_table(path)
    table = table.filter(pl.col("step") == table["step"].unique().sort()[index])
    at_tap = table.filter(pl.col("tap") == TAP)
    counted = table.filter(preset=preset, first_token="included")
    return {
        f"n_systematic_{time}": counted["n_systematic"].item() if len(counted) else None,
        f"peak_{time}": at_tap["peak"].item() if len(at_tap) else None,
        f"kurtosis_{time}": at_tap["kurtosis_of_feature_rms"].item() if len(at_tap) else None,
        f"excess_kurtosis_{time}": at_tap["excess_kurtosis"].item() if len(at_tap) else None,
    }


def boundary_for_people(summary: pl.DataFrame) -> pl.DataFrame:
    """The columns of `BOUNDARY` as text: losses in as many digits as tell arms apart."""

    def written(name: str, digits: int, *, signed: bool = False) -> pl.Expr:
        def of(value: float) -> str:
            return with_ends(value, value, value, "decimal", signed=signed, digits=digits).value

        return pl.col(name).map_elements(of, return_dtype=pl.String)

    same = pl.col("is_equivalent").map_elements(lambda value: "yes" if value else "no", return_dtype=pl.String)
    return summary.select(
        "pair",
        "seed",
        "arm",
        *(written(name, 4) for name in ("loss_before_nats", "loss_after_nats")),
        written("boundary_jump_nats", 6, signed=True),
        same,
        pl.col("largest_logit_difference").map_elements(lambda value: plain(value, 2), return_dtype=pl.String),
        written("drop_nats", 4),
    )


def for_terminal(summary: pl.DataFrame) -> pl.DataFrame:
    """The summary with the losses in as many digits as tell arms apart."""
    return summary.with_columns(
        pl.col("boundary_jump_nats").map_elements(lambda value: f"{value:+z.6f}", return_dtype=pl.String),
        pl.col("final_loss_nats").map_elements(lambda value: f"{value:.4f}", return_dtype=pl.String),
    )
