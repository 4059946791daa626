"""A run's state on disk: weights, optimisers, random numbers, and what the run is, so that it can go on exactly."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim import Optimizer

from outlier_moe.errors import StudyError
from outlier_moe.tables.whole_outputs import whole_directory
from outlier_moe.training.stored_state import load_state, save_state

FOLDER = "state"


class Resumed(NamedTuple):
    """Where a run goes on."""

    n_done: int
    """Steps that are done."""
    n_accumulate: int
    """Parts that a batch was cut into."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    at: Resumed,
    identity: Mapping[str, Any],
) -> None:
    """Keep the state of a run; the ones before are removed when this one is whole.

    Args:
        folder: The run's folder.
        model: The model.
        optimizers: Its optimisers.
        at: How far the run is.
        identity: What the run is: nested dicts and lists of what JSON has.
    """
    newest = folder / FOLDER / f"step_{at.n_done:08d}"
    with whole_directory(newest) as partial:
        save_model(model, str(partial / "model.safetensors"))
        state = {"optimizers": [optimizer.state_dict() for optimizer in optimizers], "random": _random_state()}
        save_state(state, partial / "state")
        run = {**at._asdict(), "identity": identity}
        (partial / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
    for older in newest.parent.glob("*step_*"):
        if older != newest:
            shutil.rmtree(older, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Sequence[Optimizer], *, identity: Mapping[str, Any]
) -> Resumed | None:
    """Bring model, optimisers and random numbers to the last checkpoint of a run's folder; None if there is none.

    Raises:
        StudyError: If it is damaged, or of another run.
    """
    stored = sorted(path for path in (folder / FOLDER).glob("step_*") if re.fullmatch(r"step_\d+", path.name))
    if not stored:
        return None
    newest = stored[-1]
    run = _read_run(newest / "run.json")
    _refuse_another(run["identity"], json.loads(json.dumps(identity)), file=newest / "run.json")
    load_model(model, newest / "model.safetensors")
    state = load_state(newest / "state")
    for optimizer, of_optimizer in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(of_optimizer)
    _set_random_state(state["random"])
    return Resumed(run["n_done"], run["n_accumulate"])


def _read_run(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(
            "A checkpoint cannot be read.", file=path, got=str(error), remedy="Remove its folder to train anew."
        ) from error


def _refuse_another(stored: Any, wanted: Any, *, file: Path, key: str = "") -> None:
    """Raise for the first place where two descriptions of a run differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in [*wanted, *(name for name in stored if name not in wanted)]:
            place = f"{key}.{name}" if key else str(name)
            _refuse_another(stored.get(name), wanted.get(name), file=file, key=place)
    elif stored != wanted:
        raise StudyError(
            "A checkpoint is of another configuration.",
            file=file,
            key=key,
            expected=wanted,
            got=stored,
            remedy=f"Set the key back to go on from there, or remove {file.parent.parent} to train anew.",
        )


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
