"""Wrong sections of the experiments, and wrong arguments of `count-params`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.wrong_inputs import Answer, WrongInput, command, studied


def upcycled(**section: Any) -> Callable[[Path], Answer]:
    """Ask for the shipped study with another section `upcycle`, which has the defaults but for some keys."""
    return studied(upcycle=section)


def swept(**section: Any) -> Callable[[Path], Answer]:
    """Ask for the laptop's scale sweep with some keys set."""
    return studied(scale_sweep_preset="laptop", scale_sweep=section)


CASES = [
    WrongInput(
        "upcycle: more experts for a token than there are",
        upcycled(experts={"n_experts": 4, "top_k": 8}),
        ("upcycle.experts.top_k", "at most", "4", "remedy: set top_k"),
    ),
    WrongInput(
        "upcycle: heads that do not divide d_model",
        upcycled(model={"n_heads": 3}),
        ("upcycle.model.d_model", "128", "remedy: set d_model"),
    ),
    WrongInput(
        "upcycle: virtual groups that are broken",
        upcycled(experts={"virtual_group": {"n_experts": 15}}),
        ("upcycle.experts.virtual_group.n_experts", "multiple", "15", "remedy:"),
    ),
    WrongInput(
        "upcycle: parts of a batch that are empty",
        upcycled(training={"batch_size": 8, "n_accumulate": 16}),
        ("upcycle.training.n_accumulate", "at most batch_size, 8", "16", "remedy: set n_accumulate"),
    ),
    WrongInput("upcycle: an arm by another name", upcycled(arms=["router-noise"]), ("upcycle.arms", "router_noise")),
    WrongInput("upcycle: no arm at all", upcycled(arms=[]), ("upcycle.arms", "at least one")),
    WrongInput(
        "upcycle: steps in words", upcycled(training={"dense_steps": "1k"}), ("upcycle.training.dense_steps", "1k")
    ),
    WrongInput("upcycle: a misspelt section", upcycled(trainings={}), ("trainings", "did you mean 'training'")),
    WrongInput("scale sweep: a preset that is not there", studied(scale_sweep_preset="fast"), ("fast", "laptop")),
    WrongInput(
        "scale sweep: parts of a batch that are empty",
        swept(training={"n_accumulate": 65}),
        ("scale_sweep.training.n_accumulate", "at most batch_size, 64", "65", "remedy: set n_accumulate"),
    ),
    WrongInput(
        "scale sweep: no part of a batch",
        swept(training={"n_accumulate": 0}),
        ("scale_sweep.training.n_accumulate", "0"),
    ),
    WrongInput(
        "lm scale sweep: a width that no head divides",
        studied(lm_scale_sweep={"d_models": [100]}),
        ("lm_scale_sweep.d_models", "multiple of 64", "100"),
    ),
    WrongInput(
        "count-params: memory with a unit",
        lambda folder: command("count-params", "--memory", "16GB"),
        ("--memory", "GiB", "16GB", "number alone"),
    ),
    WrongInput(
        "count-params: no memory", lambda folder: command("count-params", "--memory", "0"), ("--memory", "above 0")
    ),
    WrongInput(
        "count-params: memory without end",
        lambda folder: command("count-params", "--memory", "inf"),
        ("--memory", "got: inf"),
    ),
    WrongInput(
        "count-params: a format that is not there",
        lambda folder: command("count-params", "--format", "yaml"),
        ("--format", "yaml", "json"),
    ),
]
