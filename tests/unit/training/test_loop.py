"""The training loop: a resumed run equals an uninterrupted one, and what it minimises is what it is told to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from outlier_moe.errors import StudyError
from outlier_moe.training import checkpoints
from outlier_moe.training.loop import Trained, TrainingTask, forget_state, train
from outlier_moe.training.optimizers import adamw
from outlier_moe.training.options import TrainingOptions
from outlier_moe.training.schedule import lr_fraction
from outlier_moe.training.steps import Batch, BatchSource, StepLoss

OPTIONS = TrainingOptions(n_steps=9, n_warmup_steps=2, checkpoint_every=3, device="cpu")


class Killed(BaseException):
    """What no handler in the loop catches."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.dropout = nn.Dropout(0.3)
        self.outer = nn.Linear(8, 6)
        self.outer.weight = nn.Parameter(torch.randn(6, 8))
        # Tied, as embeddings are.
        self.twin = nn.Linear(6, 8)
        self.twin.weight = self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.dropout(torch.relu(self.inner(x) + self.twin(x))))


def batches(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return {"x": torch.randn(4, 6, generator=generator), "y": torch.randn(4, 6, generator=generator)}


def squared(model: nn.Module, batch: Batch) -> StepLoss:
    error = model(batch["x"]) - batch["y"]
    loss = error.square().mean()
    return StepLoss(loss, len(batch["x"]), {"mean_error": error.mean().detach()})


def task(source: BatchSource = batches, **options: Any) -> TrainingTask:
    torch.manual_seed(7)
    net = Net()
    bias = [p for p in net.parameters() if p.ndim < 2]
    matrices = [p for p in net.parameters() if p.ndim == 2]
    return TrainingTask(
        model=net,
        optimizers=[torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(bias, lr=0.01)],
        batches=source,
        loss=squared,
        **options,
    )


def dying_at(step: int) -> BatchSource:
    def source(number: int) -> Batch:
        if number == step:
            raise Killed
        return batches(number)

    return source


def weights(of: TrainingTask) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.model.state_dict().items()}


def without_times(trained: Trained) -> list[dict[str, Any]]:
    return trained.history.drop("step_of_job", "time_s", "processor_time_s", "units_per_s").to_dicts()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    uninterrupted = task()
    trained = train(uninterrupted, OPTIONS, tmp_path_factory.mktemp("whole"))
    return weights(uninterrupted), without_times(trained)


@pytest.mark.parametrize("kill_at", [0, 1, 3, 5, 8])
def test_a_killed_run_goes_on_bit_for_bit(kill_at: int, tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Killed):
        train(task(dying_at(kill_at)), OPTIONS, tmp_path)
    again = task()
    trained = train(again, OPTIONS, tmp_path)
    expected_weights, expected_history = whole
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights(again).items())
    assert without_times(trained) == expected_history


def test_a_kill_while_a_checkpoint_is_written_keeps_the_one_before(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoints.save_state

    def dying(state: object, path: Path) -> None:
        if "00000006" in str(path):
            raise Killed
        plain(state, path)

    monkeypatch.setattr(checkpoints, "save_state", dying)
    with pytest.raises(Killed):
        train(task(), OPTIONS, tmp_path)
    monkeypatch.undo()
    asked: list[int] = []
    again = task(lambda step: asked.append(step) or batches(step))
    train(again, OPTIONS, tmp_path)
    assert asked[0] == 3
    assert all(torch.equal(value, whole[0][name]) for name, value in weights(again).items())


def test_a_finished_run_is_not_trained_again_until_its_state_is_forgotten(tmp_path: Path, whole: Any) -> None:
    train(task(), OPTIONS, tmp_path)
    again = task(dying_at(0))
    assert without_times(train(again, OPTIONS, tmp_path)) == whole[1]
    assert all(torch.equal(value, whole[0][name]) for name, value in weights(again).items())
    forget_state(tmp_path)
    with pytest.raises(Killed):
        train(task(dying_at(0)), OPTIONS, tmp_path)


def test_a_line_cut_short_by_a_kill_is_written_again(tmp_path: Path, whole: Any) -> None:
    with pytest.raises(Killed):
        train(task(dying_at(5)), OPTIONS, tmp_path)
    with (tmp_path / "training_history.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert without_times(train(task(), OPTIONS, tmp_path)) == whole[1]
    lines = (tmp_path / "training_history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(9))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(task(dying_at(4), identity={"model": {"d_model": 6}}), OPTIONS, tmp_path)
    with pytest.raises(StudyError, match="another configuration") as caught:
        train(task(identity={"model": {"d_model": 8}}), OPTIONS, tmp_path)
    assert (caught.value.key, caught.value.expected, caught.value.got) == ("model.d_model", 8, 6)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    def without_dropout(n_accumulate: int) -> dict[str, torch.Tensor]:
        of = task()
        of.model.dropout = nn.Identity()
        options = TrainingOptions(n_steps=2, n_accumulate=n_accumulate, checkpoint_every=2, device="cpu")
        train(of, options, tmp_path / str(n_accumulate))
        return weights(of)

    whole, parts = without_dropout(1), without_dropout(3)
    assert all(torch.allclose(value, parts[name], atol=1e-5) for name, value in whole.items())


def test_memory_that_runs_out_halves_the_parts_and_goes_on(tmp_path: Path) -> None:
    def tight(model: nn.Module, batch: Batch) -> StepLoss:
        if len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("no more")
        return squared(model, batch)

    of = task()
    trained = train(TrainingTask(of.model, of.optimizers, batches, tight), OPTIONS, tmp_path)
    assert trained.n_accumulate == 2
    assert trained.history["n_accumulate"].unique().to_list() == [2]
    assert trained.history["n_units"].unique().to_list() == [4]


def test_a_diverged_run_ends_and_says_where(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def diverging(model: nn.Module, batch: Batch) -> StepLoss:
        found = squared(model, batch)
        return found._replace(loss=found.loss * (torch.inf if batch["x"].equal(batches(4)["x"]) else 1.0))

    of = task()
    trained = train(TrainingTask(of.model, of.optimizers, batches, diverging), OPTIONS, tmp_path)
    assert (trained.diverged_at, trained.n_steps) == (4, 4)
    assert trained.history["loss"].is_null().to_list() == [False] * 4 + [True]
    assert "diverged" in caplog.text


def test_a_gradient_that_is_not_finite_moves_no_weight(tmp_path: Path) -> None:
    def diverging(model: nn.Module, batch: Batch) -> StepLoss:
        found = squared(model, batch)
        # The root's slope at 0 is infinite, times 0 no number; the loss itself does not change.
        return found._replace(
            loss=found.loss + (0 * found.loss).sqrt() if batch["x"].equal(batches(4)["x"]) else found.loss
        )

    of, short = task(), task()
    trained = train(TrainingTask(of.model, of.optimizers, batches, diverging), OPTIONS, tmp_path / "run")
    assert (trained.diverged_at, trained.n_steps) == (4, 4)
    assert trained.history["loss"].is_not_null().all()
    assert trained.history["gradient_norm"].is_null().to_list() == [False] * 4 + [True]
    with pytest.raises(Killed):
        train(TrainingTask(short.model, short.optimizers, dying_at(4), squared), OPTIONS, tmp_path / "short")
    assert all(torch.equal(value, weights(short)[name]) for name, value in weights(of).items())


def test_an_optimiser_whose_linear_algebra_fails_is_a_run_that_diverged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return torch.linalg.eigh(torch.full((3, 3), torch.nan))

    of = task()
    trained = train(TrainingTask(of.model, [Failing(of.model.parameters())], batches, squared), OPTIONS, tmp_path)
    assert (trained.diverged_at, trained.n_steps, len(trained.history)) == (0, 0, 1)
    assert "diverged in step 1: linalg.eigh" in caplog.text


def test_visits_have_steps_of_their_own_if_they_are_told(tmp_path: Path) -> None:
    seen: list[int] = []
    options = replace(OPTIONS, visit_at=(1, 2, 7, 9))
    with pytest.raises(Killed):
        train(task(dying_at(8), visit=lambda n_done, model: seen.append(n_done)), options, tmp_path)
    assert seen == [0, 1, 2, 7]
    seen.clear()
    train(task(visit=lambda n_done, model: seen.append(n_done)), options, tmp_path)
    # The last state was that of step 6.
    assert seen == [7, 9]


def test_the_model_is_visited_at_the_start_at_checkpoints_and_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    train(task(visit=lambda n_done, model: seen.append((n_done, model.training))), OPTIONS, tmp_path)
    assert seen == [(0, False), (3, False), (6, False), (9, False)]


def test_bfloat16_is_autocast_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def noting(model: nn.Module, batch: Batch) -> StepLoss:
        model_dtype: Callable[..., None] = lambda *hook: seen.append(hook[2].dtype)  # noqa: E731
        with model.get_submodule("inner").register_forward_hook(model_dtype):
            return squared(model, batch)

    of = task()
    options = TrainingOptions(n_steps=1, checkpoint_every=1, device="cpu", precision="bfloat16")
    train(TrainingTask(of.model, of.optimizers, batches, noting), options, tmp_path)
    assert seen == [torch.bfloat16]
    assert of.model(torch.ones(1, 6)).dtype == torch.float32
    assert next(of.model.parameters()).dtype == torch.float32


def test_waiting_takes_no_processor_time(tmp_path: Path) -> None:
    def slow(step: int) -> Batch:
        time.sleep(0.05)
        return batches(step)

    last = train(task(slow), OPTIONS, tmp_path).history[-1]
    assert last["time_s"].item() > 0.05
    assert 0 < last["processor_time_s"].item() < last["time_s"].item()


def test_the_schedule_warms_up_and_ends_where_it_should() -> None:
    options = TrainingOptions(n_steps=10, checkpoint_every=10, n_warmup_steps=4, final_lr_fraction=0.1)
    fractions = [lr_fraction(step, options) for step in range(11)]
    assert fractions[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert fractions[10] == pytest.approx(0.1)
    assert fractions[5:] == sorted(fractions[5:], reverse=True)


def test_adamw_decays_matrices_alone() -> None:
    groups = adamw(Net(), lr=0.1, weight_decay=0.5).param_groups
    assert {(group["weight_decay"], p.ndim) for group in groups for p in group["params"]} == {(0.5, 2), (0.0, 1)}
