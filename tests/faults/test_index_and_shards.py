"""Where an index and its shards disagree, both drivers take the same tensors, or both refuse."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlier_moe.architectures.moe_hooks import pin_experts
from outlier_moe.architectures.structure import find_structure
from outlier_moe.errors import StudyError
from outlier_moe.recording.resident import load_resident
from outlier_moe.sources.checkpoint_files import INDEX, WEIGHTS
from outlier_moe.sources.checkpoint_map import map_checkpoint
from tests import zoo
from tests.streaming import CPU, all_equal, batches, open_store, streamed_hidden

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return zoo.save_checkpoint("llama", tmp_path / "llama")


def resident(checkpoint: Path) -> list[Tensor]:
    structure = find_structure(load_resident(checkpoint, dtype="checkpoint", device=CPU))
    pin_experts(structure)
    with torch.no_grad():
        return [structure.backbone(input_ids=rows, use_cache=False).last_hidden_state for rows in batches()]


def streamed(checkpoint: Path) -> list[Tensor]:
    with open_store(checkpoint, dtype="checkpoint") as store:
        return streamed_hidden(store)


def weight_map(checkpoint: Path) -> dict[str, str]:
    return json.loads((checkpoint / INDEX).read_text())["weight_map"]


def change_shard(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def last_shard(checkpoint: Path) -> Path:
    mapped = weight_map(checkpoint)
    return checkpoint / max(shard for shard in mapped.values() if shard != mapped[QUERY])


def test_a_stale_copy_in_another_shard_is_ignored_by_both(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = streamed(llama)
    shape = load_file(llama / weight_map(llama)[QUERY])[QUERY].shape
    # Behind the shard that counts, where transformers takes the last copy.
    change_shard(last_shard(llama), lambda tensors: tensors.update({QUERY: torch.full(shape, 9.0)}))
    caplog.set_level(logging.WARNING)
    expected = streamed(llama)
    assert [record.message.count(QUERY) > 0 for record in caplog.records].count(True) == 1, "named once"
    caplog.clear()
    assert all_equal(resident(llama), expected)
    assert [record.message.count(QUERY) > 0 for record in caplog.records].count(True) == 1
    # The rewritten shard lies otherwise in its file, which MKL's last bits go with.
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, expected, strict=True))


def test_an_unlisted_tensor_that_the_model_knows_not_is_named_and_ignored(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_shard(last_shard(llama), lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}))
    expected = streamed(llama)
    assert "model.extra.weight" in caplog.text
    caplog.clear()
    assert all_equal(resident(llama), expected) and "model.extra.weight" in caplog.text


@pytest.mark.parametrize("run", [resident, streamed])
def test_an_unlisted_tensor_that_the_model_needs(llama: Path, run: Callable[[Path], object]) -> None:
    mapped = weight_map(llama)
    file = mapped.pop(QUERY)
    (llama / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
    with pytest.raises(StudyError) as caught:
        run(llama)
    assert INDEX in str(caught.value.file) and caught.value.key == QUERY and file in str(caught.value.got)


def test_numbered_shards_without_an_index_are_read(llama: Path) -> None:
    expected = streamed(llama)
    (llama / INDEX).unlink()
    assert all_equal(streamed(llama), expected) and all_equal(resident(llama), expected)


@pytest.mark.parametrize("run", [resident, streamed])
def test_two_copies_without_an_index(llama: Path, run: Callable[[Path], object]) -> None:
    change_shard(last_shard(llama), lambda tensors: tensors.update({QUERY: torch.ones(2)}))
    (llama / INDEX).unlink()
    with pytest.raises(StudyError, match="two shards") as caught:
        run(llama)
    assert caught.value.key == QUERY


def test_shards_without_an_index_of_which_one_is_lacking(llama: Path) -> None:
    last = last_shard(llama)
    (llama / INDEX).unlink()
    last.unlink()
    with pytest.raises(StudyError, match="lacks some of its shards"):
        map_checkpoint(llama)
    last.with_name("model-00001-of-00009.safetensors").write_bytes(b"")
    with pytest.raises(StudyError, match="several saves"):
        map_checkpoint(llama)


def single(checkpoint: Path, change: Callable[[dict[str, Tensor]], object] = lambda tensors: None) -> None:
    """Write all tensors of the shards into one file beside them."""
    tensors = {name: t.clone() for shard in checkpoint.glob("model-*") for name, t in load_file(shard).items()}
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS, metadata={"format": "pt"})


def test_a_single_file_beside_shards_of_the_same_tensors(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    single(llama, lambda tensors: tensors[QUERY].mul_(2))
    assert all_equal(streamed(llama), resident(llama)) and "is read, and the shards" in caplog.text
    assert set(map_checkpoint(llama).headers) == {WEIGHTS}


def test_a_single_file_beside_shards_of_other_tensors(llama: Path) -> None:
    single(llama, lambda tensors: tensors.pop(QUERY))
    for run in (streamed, resident):
        with pytest.raises(StudyError, match="different tensors") as caught:
            run(llama)
        assert caught.value.key == QUERY


def test_an_index_left_behind_beside_a_single_file(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    single(llama)
    for shard in llama.glob("model-*"):
        shard.unlink()
    assert all_equal(streamed(llama), resident(llama)) and "is not used" in caplog.text


def test_a_total_that_is_not_that_of_the_tensors_is_warned_of(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    (llama / INDEX).write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": weight_map(llama)}))
    map_checkpoint(llama)
    assert "total_size" in caplog.text


@pytest.mark.parametrize("place", ["../other.safetensors", "/tmp/other.safetensors", "sub/other.safetensors", "a.bin"])
def test_an_index_that_leads_elsewhere(llama: Path, place: str) -> None:
    (llama / INDEX).write_text(json.dumps({"weight_map": {**weight_map(llama), QUERY: place}}))
    with pytest.raises(StudyError) as caught:
        map_checkpoint(llama)
    assert caught.value.file == llama / INDEX and place in str(caught.value.got)


def test_a_configuration_does_not_choose_another_file(llama: Path) -> None:
    expected = streamed(llama)
    config = json.loads((llama / "config.json").read_text())
    save_file({"a": torch.ones(1)}, llama / "other.safetensors")
    (llama / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    assert all_equal(resident(llama), expected) and all_equal(streamed(llama), expected)
