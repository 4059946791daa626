"""The phases on a tiny model: what becomes of experts in each arm, what is written, what is refused."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from outlier_moe.errors import StudyError
from outlier_moe.training import loop
from outlier_moe.training.options import TrainingOptions
from outlier_moe.upcycling.phases import PhaseOptions, continue_training, train_dense, upcycle_dense, verify_equivalence
from outlier_moe.upcycling.study import BALANCED, Arm, ExpertSizes
from outlier_moe.upcycling.transfer import TransferOptions
from tests.unit.upcycling.tiny_text import SIZES, tokenized_text

ARMS: tuple[Arm, ...] = ("dense", "zero", "router_noise")
EXPERTS = ExpertSizes(8, 2)


def options(phase: int, arm: Arm, n_steps: int) -> PhaseOptions:
    return PhaseOptions(
        phase=phase,
        training=TrainingOptions(n_steps=n_steps, n_warmup_steps=2, checkpoint_every=10, device="cpu"),
        lr=3e-3 if phase == 1 else 1e-3,
        weight_decay=0.1,
        batch_size=8,
        sequence_length=SIZES.sequence_length,
        load_balancing=0.01 if arm in BALANCED else 0.0,
        n_held_out=16,
        prompts=("the quick",),
        n_new_tokens=5,
    )


def evaluations(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "evaluations.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upcycling")
    text = tokenized_text(folder)
    train_dense(text, folder / "dense", folder / "phase1", pair="simple", sizes=SIZES, options=options(1, "dense", 30))
    for arm in ARMS:
        start = folder / "dense"
        if arm != "dense":
            start = folder / arm / "init"
            upcycle_dense(
                folder / "dense",
                start,
                pair="simple",
                arm=arm,
                sizes=SIZES,
                experts=EXPERTS,
                options=TransferOptions(),
            )
            verify_equivalence(
                folder / "dense", start, text, folder / arm / "proof.json", arm=arm, is_exact=True, sequence_length=16
            )
        experts = None if arm == "dense" else EXPERTS
        chosen = options(2, arm, 40)
        outputs = (folder / arm / "final", folder / arm / "phase2")
        continue_training(start, text, *outputs, pair="simple", arm=arm, sizes=SIZES, experts=experts, options=chosen)
    return folder


def test_phase_1_learns_and_leaves_what_it_should(folder: Path) -> None:
    losses = [found["held_out_loss_nats"] for found in evaluations(folder / "phase1")]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    names = {path.name for path in (folder / "phase1").iterdir()}
    tables = {"training_history.jsonl", "training_history.parquet"}
    assert names == {"checkpoints", "evaluations.json", "samples.json"} | tables
    assert not list(folder.rglob("*.pt")) + list(folder.rglob("*.bin")) + list(folder.rglob("*.pkl"))
    history = pl.read_parquet(folder / "phase1/training_history.parquet")
    assert history["step"].to_list() == list(range(30))
    [sample] = json.loads((folder / "phase1/samples.json").read_text())
    assert sample["prompt"] == "the quick"
    assert len(sample["sample"]) > 0


def test_exact_arms_start_at_the_dense_models_loss_on_the_same_batches(folder: Path) -> None:
    before = evaluations(folder / "phase1")[-1]["held_out_loss_nats"]
    for arm in ARMS:
        assert evaluations(folder / arm / "phase2")[0]["held_out_loss_nats"] == pytest.approx(before, abs=1e-6)
    assert json.loads((folder / "zero/proof.json").read_text())["passed"]


def test_a_router_of_zeros_leaves_six_of_eight_dead_and_two_twins(folder: Path) -> None:
    control, zero = (evaluations(folder / arm / "phase2") for arm in ("dense", "zero"))
    for found in zero:
        for layer in found["layers"]:
            assert sorted(layer["load"])[:6] == [0] * 6
    last = zero[-1]["layers"]
    live = [index for index, n_tokens in enumerate(last[0]["load"]) if n_tokens]
    pairs = [(a, b) for a in range(8) for b in range(a + 1, 8)]
    assert last[0]["distances"][pairs.index((live[0], live[1]))] == 0.0
    assert zero[-1]["held_out_loss_nats"] == pytest.approx(control[-1]["held_out_loss_nats"], abs=1e-3)


def test_router_noise_leaves_none_dead_and_lets_experts_part(folder: Path) -> None:
    last = evaluations(folder / "router_noise/phase2")[-1]["layers"]
    assert all(min(layer["load"]) > 0 for layer in last)
    assert all(min(layer["distances"]) > 0 for layer in last)


def train_until_step_13(places: tuple[Path, ...], arguments: dict[str, Any], reached: Path) -> None:
    """In a process of its own: go on training, and stand still in the middle of a step."""
    plain = loop._Run.step

    def standing_still(self: loop._Run) -> dict[str, Any]:
        if self.n_done == 13:
            reached.touch()
            time.sleep(600)
        return plain(self)

    loop._Run.step = standing_still
    continue_training(*places, **arguments)


def test_a_killed_phase_ends_as_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "pair": "simple",
        "arm": "zero",
        "sizes": SIZES,
        "experts": EXPERTS,
        "options": options(2, "zero", 40),
    }
    places = (folder / "zero/init", folder / "text", tmp_path / "final", tmp_path / "phase2")
    reached = tmp_path / "reached"
    spawned = multiprocessing.get_context("spawn").Process(
        target=train_until_step_13, args=(places, arguments, reached), daemon=True
    )
    spawned.start()
    while not reached.exists():
        assert spawned.is_alive()
        time.sleep(0.05)
    spawned.kill()
    spawned.join()
    assert spawned.exitcode == -signal.SIGKILL
    assert not (tmp_path / "phase2").exists() and not (tmp_path / "final").exists()
    other = replace(arguments["options"], lr=5e-4)
    with pytest.raises(StudyError, match="another configuration"):
        continue_training(*places, **{**arguments, "options": other})
    continue_training(*places, **arguments)
    name = "final/model.safetensors"
    assert (tmp_path / name).read_bytes() == (folder / "zero" / name).read_bytes()
    assert evaluations(tmp_path / "phase2") == evaluations(folder / "zero/phase2")
    assert pl.read_parquet(tmp_path / "phase2/training_history.parquet")["step"].to_list() == list(range(40))


def test_a_checkpoint_of_another_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="another configuration") as caught:
        upcycle_dense(
            folder / "dense",
            tmp_path / "moe",
            pair="simple",
            arm="zero",
            sizes=replace(SIZES, d_ff=64),
            experts=EXPERTS,
            options=TransferOptions(),
        )
    assert (caught.value.key, caught.value.expected, caught.value.got) == ("intermediate_size", 64, 32)


def test_a_failed_proof_is_an_error_for_an_exact_arm_alone(folder: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(folder / "zero/final", tmp_path / "wrong")
    arguments: dict[str, Any] = {"arm": "zero", "sequence_length": 16}
    places = (folder / "dense", wrong, folder / "text", tmp_path / "proof.json")
    with pytest.raises(StudyError, match="does not compute"):
        verify_equivalence(*places, is_exact=True, **arguments)
    assert not (tmp_path / "proof.json").exists()
    verify_equivalence(*places, is_exact=False, **arguments)
    assert not json.loads((tmp_path / "proof.json").read_text())["passed"]
