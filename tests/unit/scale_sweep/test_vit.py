"""The classifiers: their published parameter counts, and the memory of a step against a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
import torch

from outlier_moe.architectures.structure import find_structure
from outlier_moe.cli import main
from outlier_moe.machine.heap import release_freed_memory
from outlier_moe.scale_sweep.classifiers import classification_loss
from outlier_moe.scale_sweep.study import OPTIMIZERS, Geometry, Scale
from outlier_moe.scale_sweep.vit import PUBLISHED, SIZES, counted_models, n_vit_parameters, new_vit, step_memory
from outlier_moe.training.named_optimizers import named_optimizers
from outlier_moe.training.optimizers import adamw
from outlier_moe.training.options import OptimizerName
from outlier_moe.training.parameter_counts import Computed, count_parameters
from outlier_moe.training.stored_state import save_state

COUNTS = {
    "vit-tiny": 2_693_578,
    "vit-small": 10_695_562,
    "vit-medium": 25_284_106,
    "vit-large": 56_800_522,
    "vit-xl": 100_899_850,
}


def test_parameter_counts_are_the_published_ones() -> None:
    assert {model.model: count_parameters(model).total for model in counted_models()} == COUNTS
    assert {f"vit-{name}": n_vit_parameters(scale, PUBLISHED) for name, scale in SIZES.items()} == COUNTS


def test_the_count_is_right_for_other_images_too() -> None:
    scale, geometry = Scale(32, 2, 2), Geometry(8, 1, 2)
    assert n_vit_parameters(scale, geometry) == sum(p.numel() for p in new_vit(scale, geometry).parameters())


def test_the_command_lists_them_with_the_memory_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count-params", "--format", "json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out) if row["experiment"] == "scale_sweep"}
    assert {name: row["n_parameters"] for name, row in rows.items()} == COUNTS
    assert [row["batch_size"] for row in rows.values()] == [4096, 2048, 2048, 1024, 1024]
    parts = ("parameters_gib", "gradients_gib", "optimizer_state_gib", "activations_gib")
    for row in rows.values():
        assert row["step_memory_gib"] == pytest.approx(sum(row[part] for part in parts))
        assert row["parameters_gib"] == row["gradients_gib"] == 4 * row["n_parameters"] / 2**30
        assert row["optimizer_state_gib"] == 2 * row["parameters_gib"]


def test_the_table_says_in_which_precision_the_memory_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count-params"]) == 0
    assert "float32" in capsys.readouterr().out


@pytest.mark.parametrize("precision", get_args(Computed))
def test_what_the_backward_pass_keeps_is_estimated(precision: Computed) -> None:
    n_images = 8
    batch = {"pixel_values": torch.randn(n_images, 3, 32, 32), "labels": torch.arange(n_images)}
    found = []
    for scale in (Scale(96, 2, 3), Scale(96, 4, 3)):
        model = new_vit(scale, PUBLISHED)
        kept = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
        tensors = []

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept, tensors: list[Any] = tensors) -> torch.Tensor:
            # Those that are let go of would leave their places to others.
            tensors.append(tensor)
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            classification_loss(model, batch)
        estimate = step_memory(scale, PUBLISHED, batch_size=n_images, precision=precision)
        found.append((sum(kept.values()), estimate.activations + estimate.copies))
    # What two layers keep; the beginning of the backward pass is not in what is saved.
    (of_two, estimated_of_two), (of_four, estimated_of_four) = found
    assert of_four - of_two == pytest.approx(estimated_of_four - estimated_of_two, rel=0.05)


@pytest.mark.parametrize("gib", [0.01, 0.06, 0.1, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("precision", get_args(Computed))
def test_the_parts_of_a_batch_are_the_fewest_that_fit(gib: float, precision: Computed) -> None:
    memory = step_memory(SIZES["tiny"], PUBLISHED, batch_size=1000, precision=precision)
    fitting = [n for n in range(1, 1001) if memory.in_parts(n).total <= gib * 2**30]
    assert memory.n_parts(gib * 2**30) == (fitting[0] if fitting else None)


def test_the_command_says_the_setting_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count-params", "--memory", "16", "--format", "json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["experiment"] == "scale_sweep"]
    assert [row["n_accumulate"] for row in rows] == [2, 2, 3, 2, 3]
    assert [row["n_accumulate_bfloat16"] for row in rows] == [1, 1, 2, 2, 2]
    assert all(row["fitting_gib"] <= 16 < row["step_memory_gib"] for row in rows)
    assert main(["count-params", "--memory", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "n_accumulate: 293" in told and "vit-large, vit-xl" in told


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_estimated_state_is_what_an_optimiser_keeps(optimizer: OptimizerName, tmp_path: Path) -> None:
    scale, geometry = Scale(48, 2, 3), Geometry(8, 1, 2)
    model = new_vit(scale, geometry)
    kept = named_optimizers(model, find_structure(model).layers, optimizer, lr=0.001, adamw_lr=0.001, weight_decay=0.0)
    model(pixel_values=torch.randn(2, 1, 8, 8)).logits.square().mean().backward()
    for of in kept:
        of.step()
        save_state(of.state_dict(), tmp_path / str(len(list(tmp_path.iterdir()))))
    n_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    estimate = step_memory(scale, geometry, batch_size=1, optimizer=optimizer).optimizer_state
    assert n_bytes == pytest.approx(estimate, rel=0.1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process forget its peak")
def test_the_estimated_memory_of_a_step_is_what_a_step_takes() -> None:
    scale, n_images = Scale(192, 4, 3), 48
    estimate = step_memory(scale, PUBLISHED, batch_size=n_images)
    batch = {"pixel_values": torch.randn(n_images, 3, 32, 32), "labels": torch.arange(n_images) % 10}
    # What libraries set up at their first use is not the step's.
    classification_loss(new_vit(Scale(6, 1, 1), PUBLISHED), {k: v[:2] for k, v in batch.items()}).loss.backward()
    release_freed_memory()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")
    model = new_vit(scale, PUBLISHED)
    optimizer = adamw(model, lr=1e-3)
    for _ in range(2):
        classification_loss(model, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    [peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    assert 1024 * int(peak) - before == pytest.approx(estimate.total, rel=0.25)
