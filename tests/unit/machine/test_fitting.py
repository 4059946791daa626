"""What does not fit goes through a model in smaller chunks, and in the weights' precision where it has to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outlier_moe.machine.fitting import FittingChunk
from outlier_moe.scale_sweep.study import Geometry, Scale
from outlier_moe.scale_sweep.vit import new_vit
from outlier_moe.tables.whole_outputs import remove_whole
from outlier_moe.training.devices import accelerator_for, in_full_precision
from outlier_moe.training.options import TrainingOptions

VIT = (Scale(8, 1, 1), Geometry(8, 1, 4))


def test_chunks_are_halved_until_they_fit_and_stay_so() -> None:
    tried: list[int] = []

    def work(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("no more")
        return "done"

    chunk = FittingChunk(new_vit(*VIT), 14)
    assert chunk.run(work) == "done" and chunk.run(work) == "done"
    assert tried == [14, 7, 3, 3]


def test_what_does_not_fit_alone_and_other_errors_are_told() -> None:
    def failing(error: Exception) -> None:
        raise error

    chunk = FittingChunk(new_vit(*VIT), 2)
    with pytest.raises(ValueError, match="another"):
        chunk.run(lambda size: failing(ValueError("another")))
    assert chunk.size == 2
    with pytest.raises(MemoryError):
        chunk.run(lambda size: failing(MemoryError()))


def test_full_precision_is_that_of_the_weights_inside_of_autocast() -> None:
    model, x = new_vit(*VIT).eval(), torch.randn(3, 1, 8, 8)
    plain = model(pixel_values=x).logits
    with accelerator_for(
        TrainingOptions(n_steps=1, checkpoint_every=1, precision="bfloat16", device="cpu")
    ) as accelerator:
        wrapped = accelerator.prepare(model)
        assert not torch.equal(wrapped(pixel_values=x).logits, plain)
        with in_full_precision(model):
            assert torch.equal(wrapped(pixel_values=x).logits, plain)
        assert not torch.equal(wrapped(pixel_values=x).logits, plain)


def test_a_folder_is_removed_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    (folder / "state").mkdir(parents=True)
    monkeypatch.setattr("outlier_moe.tables.whole_outputs.shutil.rmtree", lambda *args, **options: None)
    # As if it were killed once the folder has another name.
    remove_whole(folder)
    assert not folder.exists() and [path.name for path in tmp_path.iterdir()] == [".work.gone"]
    monkeypatch.undo()
    remove_whole(folder)
    assert not list(tmp_path.iterdir())
