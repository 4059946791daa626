"""Made-up tables of the experiment dense -> MoE, as its summary writes them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from outlier_moe.tables.completing import completed
from outlier_moe.tables.upcycling import (
    ExpertLoad,
    UpcyclingCheckpoint,
    UpcyclingOutlier,
    UpcyclingRun,
    UpcyclingSample,
    UpcyclingStep,
)

BOUNDARY, N_STEPS = 40, 60


def made_up_tables(pairs: Sequence[str]) -> dict[str, pl.DataFrame]:
    """The control and one mixture of two experts, two seeds: phase 1 has 40 steps, phase 2 20."""
    runs = [{"pair": pair, "seed": seed, "arm": arm} for pair in pairs for seed in (0, 1) for arm in ("dense", "zero")]
    places = [(1, 0), (1, BOUNDARY), (2, BOUNDARY), (2, N_STEPS)]
    checkpoints = [
        {**run, "phase": phase, "step": step, "held_out_loss_nats": 6.0 - step / 100}
        for run in runs
        for phase, step in places
    ]
    outliers = [{**row, "tap": "residual", "peak": 9.0, "kurtosis_of_feature_rms": 2.0} for row in checkpoints]
    experts = [
        {**run, "step": N_STEPS, "layer": 0, "expert": expert, "n_tokens": 8, "load_share": 0.5}
        for run in runs
        if run["arm"] == "zero"
        for expert in (0, 1)
    ]
    speed = {"learning_rate": 1e-3, "n_units": 64, "units_per_s": 640.0, "time_s": 0.1, "n_accumulate": 1}
    history = [
        {**run, "phase": 2, "step": step, "loss": 5.0, **speed} for run in runs for step in range(BOUNDARY, N_STEPS)
    ]
    losses = {"loss_before_nats": 5.6, "loss_after_nats": 5.6, "boundary_jump_nats": 0.0, "final_loss_nats": 5.4}
    summary = [
        {**run, **losses, "drop_nats": 0.2, "n_dead": 6.0, "n_steps": N_STEPS - BOUNDARY, "time_s": 2.0} for run in runs
    ]
    said = [{**run, "phase": 2, "prompt": "Once", "continuation": f" upon {run['arm']}"} for run in runs]
    return {
        "summary": completed(UpcyclingRun, pl.DataFrame(summary)),
        "checkpoints": completed(UpcyclingCheckpoint, pl.DataFrame(checkpoints)),
        "outliers": completed(UpcyclingOutlier, pl.DataFrame(outliers)),
        "history": completed(UpcyclingStep, pl.DataFrame(history)),
        "experts": completed(ExpertLoad, pl.DataFrame(experts)),
        "samples": completed(UpcyclingSample, pl.DataFrame(said)),
    }
