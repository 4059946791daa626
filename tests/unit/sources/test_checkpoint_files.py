from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import small_files, weight_files
from outlier_moe.sources.checkpoint_map import map_checkpoint
from outlier_moe.sources.safetensors_header import read_header
from tests.unit.sources.checkpoints import INDEX, repository, shards, write


def test_small_files_are_configuration_and_tokenizer_of_the_top_folder() -> None:
    names = repository()
    wanted = {
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(small_files(names)) == wanted
    assert set(small_files(names, with_code=True)) == wanted | {"modeling_own.py"}


def test_sentencepiece_tiktoken_and_bpe_vocabularies_are_small_files() -> None:
    names = ["tokenizer.model", "qwen.tiktoken", "vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", INDEX]
    assert small_files(names) == sorted(names)


def test_weights_are_what_transformers_would_read(tmp_path: Path) -> None:
    assert weight_files(repository(), tmp_path, origin="o/n") == ["model.safetensors"]
    files = repository(shards([["a", "b"], ["c"]]))
    write(tmp_path, files)
    wanted = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert weight_files(files, tmp_path, origin="o/n") == wanted


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        weight_files(["config.json", "pytorch_model.bin"], tmp_path, origin="o/n at 1")
    assert caught.value.got == "pytorch_model.bin" and caught.value.file == "o/n at 1"
    assert "refs/pr" in (caught.value.remedy or "")
    with pytest.raises(StudyError, match="no safetensors"):
        weight_files([], tmp_path, origin="o/n")


def test_an_index_that_names_an_absent_file(tmp_path: Path) -> None:
    write(tmp_path, files := shards([["a"], ["b"], ["c"]]))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(StudyError) as caught:
        map_checkpoint(tmp_path)
    assert INDEX in str(caught.value.file)
    assert caught.value.expected == "3 files, model-00002-of-00003.safetensors among them"
    assert len(files) == 4


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": "../b"}}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_that_cannot_be_read(tmp_path: Path, index: bytes) -> None:
    write(tmp_path, {**shards([["a"]]), INDEX: index})
    with pytest.raises(StudyError) as caught:
        map_checkpoint(tmp_path)
    assert caught.value.file == tmp_path / INDEX and caught.value.key == "weight_map"


def test_an_index_that_places_a_tensor_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, shards([["a"], ["b"]]))
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["a"] = "model-00002-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(StudyError) as caught:
        map_checkpoint(tmp_path)
    assert caught.value.key == "a" and caught.value.file == tmp_path / "model-00002-of-00002.safetensors"


def test_a_whole_checkpoint_is_accepted(tmp_path: Path) -> None:
    write(tmp_path / "one", repository())
    assert list(map_checkpoint(tmp_path / "one").headers) == ["model.safetensors"]
    write(tmp_path / "two", repository(shards([["a"], ["b"]])))
    assert list(map_checkpoint(tmp_path / "two").headers) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no safetensors"):
        map_checkpoint(tmp_path / "absent")


def test_a_truncated_file_says_what_is_missing(tmp_path: Path) -> None:
    content = save({"a": np.zeros(100, np.float32)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:-40])
    with pytest.raises(StudyError) as caught:
        read_header(path)
    error = caught.value
    assert (error.file, error.expected, error.got) == (path, f"{len(content)} bytes", f"{len(content) - 40} bytes")


@given(content=st.binary(max_size=80), cut=st.integers(0, 400))
def test_whatever_the_safetensors_library_refuses_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int
) -> None:
    whole = save({"a": np.arange(6, dtype=np.int8), "b": np.ones((2, 3), np.float32)})
    path = tmp_path_factory.mktemp("headers") / "model.safetensors"
    for damaged in (content, whole[:cut], whole + content, struct.pack("<Q", len(content)) + content):
        path.write_bytes(damaged)
        try:
            tensors = load(damaged)
        except Exception:
            with pytest.raises(StudyError):
                read_header(path)
        else:
            assert set(read_header(path)) == set(tensors)
