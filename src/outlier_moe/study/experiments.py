"""The jobs on nodes of a study's training experiments, as the workflow has them: a test holds the two equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlier_moe.scale_sweep.study import chosen_sweep


def experiments_of(study: Mapping[str, Any]) -> list[str]:
    """The training experiments that belong to a validated study: those of the demo, unless models were chosen."""
    return list(study["experiments"]) if study["sweep"] == "demo" and not study["models"] else []


def training_jobs(study: Mapping[str, Any]) -> dict[str, int]:
    """How many jobs each experiment of a validated study has on nodes, for training and for recording checkpoints."""
    upcycle, images, text = study["upcycle"], chosen_sweep(study), study["lm_scale_sweep"]
    # Of every pair and seed a dense model and what each arm makes of it are trained, and one job records all of them.
    jobs_of_seed = 1 + len(upcycle["arms"]) + 1
    jobs = {
        "upcycle": len(upcycle["pairs"]) * len(upcycle["seeds"]) * jobs_of_seed,
        "scale_sweep": _jobs_of_sweep(images, len(images["scales"]), tries_rates=True),
        # One learning rate is taken as it is.
        "lm_scale_sweep": _jobs_of_sweep(text, len(text["d_models"]), tries_rates=len(text["multiples"]) > 1),
    }
    return {experiment: jobs[experiment] for experiment in experiments_of(study)}


def _jobs_of_sweep(sweep: Mapping[str, Any], n_scales: int, *, tries_rates: bool) -> int:
    """A job for each seed of a scale and optimiser, and one that tries learning rates for all of them."""
    return n_scales * len(sweep["optimizers"]) * (len(sweep["seeds"]) + tries_rates)
