"""Tables of a made-up sweep over optimisers and scales."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe.report.sweeps import Sweep
from outlier_moe.scale_sweep.figures import SweptRun
from outlier_moe.scale_sweep.summary import summarise_sweep
from outlier_moe.tables.sweeps import FIGURES

SIZES = {"w8": 1000, "w16": 4000}
SCHEMA = {"step": pl.Int64, "metric": pl.String, "place": pl.String, "value": pl.Float64}


def made_up_sweep(folder: Path, *, n_seeds: int, diverges: bool, sizes: dict[str, int] = SIZES) -> Sweep:
    """Tables of a sweep whose weights lose rank with size under AdamW alone.

    Args:
        folder: Where to write the runs.
        n_seeds: Of each scale and optimiser.
        diverges: Whether the first run under Muon does.
        sizes: The parameters of each scale.
    """
    runs = []
    for (scale, size), optimizer, seed in product(sizes.items(), ("adamw", "muon"), range(n_seeds)):
        place = folder / scale / optimizer / str(seed)
        place.mkdir(parents=True)
        ends_badly = diverges and (scale, optimizer, seed) == (next(iter(sizes)), "muon", 0)
        at_edge = (scale, optimizer) == ([*sizes][-1], "muon")
        facts = _facts(size, seed, diverged_at=7 if ends_badly else None, edge="highest" if at_edge else None)
        (place / "run.json").write_text(json.dumps(facts))
        steps = {"learning_rate": [0.1, 0.05], "gradient_norm": [2.0, 0.5]}
        pl.DataFrame(steps).write_parquet(place / "training_history.parquet")
        rank = 0.9 - (size / 10_000 if optimizer == "adamw" else 0) + seed / 1000
        rows = [row for step in (0, 5, 10) for row in _measures(step, rank, seed)]
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(place / "metrics.parquet")
        runs.append(SweptRun(scale, optimizer, seed, place, place / "metrics.parquet"))
    return summarise_sweep(runs)._asdict()


def _facts(size: int, seed: int, *, diverged_at: int | None, edge: str | None) -> dict[str, Any]:
    sizes = {"n_parameters": size, "d_model": 8, "n_layers": 1, "n_steps": 10, "batch_size": 4, "n_accumulate": 1}
    optimizer = {"optimizer_lr": 0.1, "optimizer_grid_edge": edge, "optimizer_weight_decay": 0.1}
    times = {"time_training_s": 1.0, "step_time_s": 0.01 * (1 + seed)}
    return {**sizes, **optimizer, **times, "diverged_at": diverged_at, "data": {"n_classes": 10}}


def _measures(step: int, rank: float, seed: int) -> list[tuple[int, str, str, float]]:
    known = {
        "train_loss_nats": 2 - step / 10 - seed / 100,
        "weight_effective_rank": rank + step / 1000,
        "hoyer": 0.3 + seed / 100,
    }
    others = {figure: 0.5 + step / 100 for figure in FIGURES if figure not in known}
    return [(step, *_place(figure), value) for figure, value in (known | others).items()]


def _place(figure: str) -> tuple[str, str]:
    metric, places = FIGURES[figure]
    return metric, places[0]
