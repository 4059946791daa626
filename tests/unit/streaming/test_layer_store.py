"""A checkpoint that does not fit its model is an error that names the file and the tensor, never a random weight."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import INDEX
from outlier_moe.streaming import layer_store
from outlier_moe.streaming.layer_store import REST, LayerStore
from outlier_moe.streaming.shards import LocalShards
from tests import zoo
from tests.streaming import all_equal, open_store, resident_hidden, streamed_hidden

FIRST_QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return zoo.save_checkpoint("llama", tmp_path / "llama")


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    return zoo.save_checkpoint("mixtral", tmp_path / "mixtral")


def rewrite(checkpoint: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of a checkpoint, which then is a single file."""
    tensors = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        tensors |= {name: tensor.clone() for name, tensor in load_file(shard).items()}
        shard.unlink()
    (checkpoint / INDEX).unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def weight_map(checkpoint: Path) -> dict[str, str]:
    return json.loads((checkpoint / INDEX).read_text())["weight_map"]


def run(checkpoint: Path) -> list[Tensor]:
    with open_store(checkpoint) as store:
        return streamed_hidden(store)


def refusal(checkpoint: Path) -> StudyError:
    with pytest.raises(StudyError) as error:
        run(checkpoint)
    assert error.value.remedy
    return error.value


def test_each_byte_is_read_once(mixtral: Path) -> None:
    with open_store(mixtral) as store:
        streamed_hidden(store)
        stored = sum(tensor.nbytes for shard in mixtral.glob("*.safetensors") for tensor in load_file(shard).values())
        assert store.bytes_read == stored


def test_what_is_larger_than_memory_does_not_stay_in_the_systems_cache(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(mixtral)
    forgotten: list[str] = []
    plain = layer_store.forget_cached

    def noting(path: Path, entries: Any, names: list[str]) -> None:
        forgotten.extend(names)
        plain(path, entries, names)

    monkeypatch.setattr(layer_store, "forget_cached", noting)
    assert all_equal(run(mixtral), expected)
    assert forgotten == [], "there is room for it"
    monkeypatch.setattr(layer_store, "available_bytes", lambda: 0)
    assert all_equal(run(mixtral), expected)
    of_layers = [name for name in weight_map(mixtral) if name.startswith("model.layers.")]
    assert sorted(forgotten) == sorted(of_layers), "each once"


def test_a_single_file_streams_as_shards_do(llama: Path) -> None:
    expected = run(llama)
    # In one file the matrices lie elsewhere, and MKL's last bits with them; so do the resident model's.
    alone = rewrite(llama, lambda tensors: None)
    assert all_equal(run(alone), resident_hidden(alone))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(run(alone), expected, strict=True))


def test_a_missing_weight(llama: Path) -> None:
    error = refusal(rewrite(llama, lambda tensors: tensors.pop(FIRST_QUERY)))
    assert "lacks weights" in error.problem and error.key == FIRST_QUERY


def test_a_missing_expert(mixtral: Path) -> None:
    """The weight that merges the experts is there, but one part of it is not."""
    error = refusal(rewrite(mixtral, lambda t: t.pop("model.layers.3.block_sparse_moe.experts.5.w1.weight")))
    assert "layers.3" in str(error.key) and "experts" in str(error.key)


def test_a_missing_layer(llama: Path) -> None:
    edit(llama / "config.json", num_hidden_layers=zoo.N_LAYERS + 1)
    error = refusal(llama)
    assert "lacks weights" in error.problem and f"layers.{zoo.N_LAYERS}" in str(error.key)


def test_a_layer_too_many(llama: Path) -> None:
    edit(llama / "config.json", num_hidden_layers=zoo.N_LAYERS - 1)
    error = refusal(llama)
    assert "belong nowhere" in error.problem and f"layers.{zoo.N_LAYERS - 1}" in str(error.key)
    assert str(error.file).endswith(".safetensors")


def test_a_name_that_belongs_nowhere(llama: Path) -> None:
    error = refusal(rewrite(llama, lambda tensors: tensors.update({"model.layers.0.extra": torch.ones(2)})))
    assert "belong nowhere" in error.problem and error.key == "model.layers.0.extra"


def test_two_names_of_one_weight(llama: Path) -> None:
    """transformers would take the first by name."""
    name = "layers.1.mlp.up_proj.weight"
    error = refusal(rewrite(llama, lambda tensors: tensors.update({name: tensors[f"model.{name}"] + 1})))
    assert "same weight" in error.problem and error.key == f"{name}, model.{name}"


def test_experts_one_by_one_and_joined(mixtral: Path) -> None:
    name = "model.layers.1.mlp.experts.down_proj"
    error = refusal(rewrite(mixtral, lambda tensors: tensors.update({name: torch.ones(zoo.N_EXPERTS, 64, 96)})))
    assert "same weight" in error.problem and error.key == name


@pytest.mark.parametrize(
    "head",
    [
        ["model.layers.6.eh_proj.weight", "model.layers.6.enorm.weight", "model.layers.6.mlp.up_proj.weight"],
        ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"],
        ["model.mtp_layers.0.mlp.up_proj.weight"],
    ],
)
def test_a_prediction_layer_at_any_depth_is_left_out(head: list[str], llama: Path) -> None:
    expected = run(llama)
    checkpoint = rewrite(llama, lambda tensors: tensors.update({name: torch.ones(8, 8) for name in head}))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(run(checkpoint), expected, strict=True))


@pytest.mark.parametrize(
    ("family", "ignorable"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        # The layer for multi-token prediction of a model with 61 others.
        ("deepseek_v3", "model.layers.61.embed_tokens.weight"),
    ],
)
def test_what_the_family_declares_ignorable_is_ignored(family: str, ignorable: str, tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint(family, tmp_path / family)
    rewrite(checkpoint, lambda tensors: tensors.update({ignorable: torch.ones(8)}))
    assert all_equal(run(checkpoint), resident_hidden(checkpoint))


def test_a_wrong_shape(llama: Path) -> None:
    error = refusal(rewrite(llama, lambda tensors: tensors.update({FIRST_QUERY: torch.ones(8, 8)})))
    assert "does not fit" in error.problem and error.key == FIRST_QUERY
    assert (error.file, error.got) == (llama / "model.safetensors", "shape [8, 8]")


def test_experts_of_different_shapes(mixtral: Path) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    error = refusal(rewrite(mixtral, lambda tensors: tensors.update({name: torch.ones(3, 3)})))
    assert "does not fit" in error.problem and "layers.1" in str(error.key)
    assert error.file == mixtral / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_a_wrong_dtype(dtype: torch.dtype, llama: Path) -> None:
    error = refusal(rewrite(llama, lambda tensors: tensors.update({FIRST_QUERY: tensors[FIRST_QUERY].to(dtype)})))
    assert "dtype" in error.problem and error.key == FIRST_QUERY
    assert error.file == llama / "model.safetensors"


def test_other_floats_are_converted(llama: Path) -> None:
    checkpoint = rewrite(llama, lambda tensors: tensors.update({k: t.half() for k, t in tensors.items()}))
    assert all_equal(run(checkpoint), resident_hidden(checkpoint))


def test_a_missing_shard(llama: Path) -> None:
    shard = weight_map(llama)[FIRST_QUERY]
    (llama / shard).unlink()
    error = refusal(llama)
    assert "not there" in error.problem and INDEX in str(error.file) and shard in str(error.expected)


def test_a_truncated_shard_is_told_before_anything_runs(llama: Path) -> None:
    last = weight_map(llama)[f"model.layers.{zoo.N_LAYERS - 1}.mlp.down_proj.weight"]
    (llama / last).write_bytes((llama / last).read_bytes()[:-100])
    with pytest.raises(StudyError, match="cut short") as error:
        open_store(llama)
    assert error.value.file == llama / last


def test_a_shard_that_lacks_a_tensor_of_the_index(llama: Path) -> None:
    mapped = weight_map(llama)
    other = next(shard for shard in mapped.values() if shard != mapped[FIRST_QUERY])
    edit(llama / INDEX, weight_map={**mapped, FIRST_QUERY: other})
    error = refusal(llama)
    assert "lacks a tensor" in error.problem and error.key == FIRST_QUERY


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b"}}']
)
def test_a_broken_index(content: str, llama: Path) -> None:
    (llama / INDEX).write_text(content)
    error = refusal(llama)
    assert error.file == llama / INDEX and error.key == "weight_map"


def test_no_weights_at_all(llama: Path) -> None:
    for path in [*llama.glob("*.safetensors"), llama / INDEX]:
        path.unlink()
    (llama / "pytorch_model.bin").write_bytes(b"pickle")
    error = refusal(llama)
    assert error.got == "pytorch_model.bin" and "never read" in str(error.remedy)


def test_an_unknown_family(llama: Path) -> None:
    edit(llama / "config.json", model_type="lama")
    assert "llama" in str(refusal(llama).remedy)


def test_remote_code_is_refused(llama: Path) -> None:
    edit(llama / "config.json", model_type="lama", auto_map={"AutoModelForCausalLM": "modeling_lama.Lama"})
    assert "trust_remote_code" in str(refusal(llama).remedy)


def test_towers_are_neither_read_nor_missed(tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint("gemma3", tmp_path)
    with open_store(checkpoint) as store:
        streamed_hidden(store)
        tower = {name for name, tensor in store.model.named_parameters() if tensor.is_meta and "vision_tower" in name}
        assert tower
        whole = sum(shard.stat().st_size for shard in tmp_path.glob("*.safetensors"))
        assert store.bytes_read < 0.95 * whole


def test_tied_weights_share_one_tensor(tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path)
    edit(checkpoint / "config.json", tie_word_embeddings=True)
    rewrite(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    with open_store(checkpoint) as store:
        streamed_hidden(store)
        assert store.model.lm_head.weight is store.model.model.embed_tokens.weight


def test_tied_weights_that_differ_in_the_checkpoint_are_not_tied(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(llama / "config.json", tie_word_embeddings=True)
    logging.getLogger("transformers").propagate = True
    with open_store(llama) as store:
        streamed_hidden(store)
        assert not torch.equal(store.model.lm_head.weight, store.model.model.embed_tokens.weight)


def test_the_identity_changes_with_the_files(llama: Path) -> None:
    before = LocalShards(llama).identity
    assert before == LocalShards(llama).identity
    shard = llama / weight_map(llama)[FIRST_QUERY]
    shard.write_bytes(shard.read_bytes())
    assert LocalShards(llama).identity != before


def test_the_store_counts_layers_once_each(llama: Path) -> None:
    store: LayerStore = open_store(llama)
    assert store.n_layers == zoo.N_LAYERS
    assert set(store._portions) == {REST, *range(zoo.N_LAYERS)}
