"""Checkpoints whose files are sound, and which are no language model that can be recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel

from outlier_moe.architectures.model_class import read_config
from outlier_moe.architectures.other_kinds import other_kind
from outlier_moe.config.registry import GgufSource
from outlier_moe.errors import StudyError
from outlier_moe.recording.resident import load_resident
from outlier_moe.sources.local_files import local_state
from outlier_moe.tables.contents import DigestMemo
from tests import zoo
from tests.streaming import CPU, open_store

DRIVERS: list[Callable[[Path], object]] = [
    lambda checkpoint: open_store(checkpoint, dtype="checkpoint"),
    lambda checkpoint: load_resident(checkpoint, dtype="checkpoint", device=CPU),
]


@pytest.mark.parametrize("run", DRIVERS, ids=["streamed", "resident"])
def test_a_model_without_a_head(tmp_path: Path, run: Callable[[Path], object]) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path / "llama", max_shard_size="1GB")
    tensors = {name: t for name, t in load_file(checkpoint / "model.safetensors").items() if "lm_head" not in name}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    with pytest.raises(StudyError, match="no language model's head") as caught:
        run(checkpoint)
    assert caught.value.key == "lm_head.weight" and "LlamaModel" in str(caught.value.got)


@pytest.mark.parametrize("run", DRIVERS, ids=["streamed", "resident"])
@pytest.mark.parametrize(
    ("family", "sizes", "word"),
    [
        (
            "bert",
            {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            "encoder",
        ),
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64}, "encoder-decoder"),
    ],
)
def test_encoders_that_transformers_would_load_as_language_models(
    tmp_path: Path, family: str, sizes: dict[str, Any], word: str, run: Callable[[Path], object]
) -> None:
    AutoModel.from_config(CONFIG_MAPPING[family](**sizes), dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(StudyError, match=word):
        run(tmp_path)


def test_every_family_of_the_zoo_is_a_decoder() -> None:
    assert {name: found for name in zoo.ZOO if (found := other_kind(zoo.tiny_config(name)))} == {}


def test_the_state_of_a_gguf_source_is_that_of_its_parts(tmp_path: Path) -> None:
    def state() -> str:
        return local_state(GgufSource(tmp_path / "a-00001-of-00002.gguf"), DigestMemo(tmp_path / "digests.json"))

    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"x")
    before = state()
    assert before.count(".gguf") == 2
    (tmp_path / "b.gguf").write_bytes(b"other")
    assert state() == before
    (tmp_path / "a-00002-of-00002.gguf").write_bytes(b"other")
    assert state() != before


@pytest.mark.parametrize("said", ["LlamaForSequenceClassification", [None], {"a": 1}])
def test_classes_that_are_no_list_of_names(said: object, tmp_path: Path) -> None:
    """A reward model must not pass as a language model because a string has no name in it that ends so."""
    path = zoo.save_checkpoint("llama", tmp_path / "llama") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": said}))
    with pytest.raises(StudyError) as error:
        read_config(path.parent)
    assert (error.value.key, error.value.got, error.value.file) == ("architectures", said, path)
