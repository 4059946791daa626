"""Where a configuration names no dtype, the plan and both drivers compute in that of most of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from outlier_moe.config.registry import DirectorySource, HubSource
from outlier_moe.errors import StudyError
from outlier_moe.planning.configs import find_config
from outlier_moe.planning.sizes import model_sizes
from outlier_moe.recording.resident import load_resident
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.origin import read_origin
from outlier_moe.streaming.hub_shards import fetched_shards
from tests import zoo
from tests.hub_server import reachable_hub
from tests.streaming import CPU, open_store
from tests.unit.sources.entries import model_entry


def edit_config(checkpoint: Path, **fields: Any) -> None:
    path = checkpoint / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("dtype", "torch_dtype")}
    path.write_text(json.dumps({**config, **fields}))


def store_in(checkpoint: Path, dtypes: dict[str, torch.dtype], default: torch.dtype) -> None:
    """Cast the tensors whose names hold a word, and all others."""
    for shard in checkpoint.glob("*.safetensors"):
        cast = {
            name: tensor.to(next((dtype for word, dtype in dtypes.items() if word in name), default))
            for name, tensor in load_file(shard).items()
        }
        save_file(cast, shard, metadata={"format": "pt"})


def answers(checkpoint: Path) -> set[str]:
    """What each part of the pipeline computes a folder in."""
    entry = model_entry(DirectorySource(checkpoint))
    fetched = checkpoint.parent / "fetched"
    planned = model_sizes(find_config(entry, checkpoint.parent / "none").config).dtype
    fetch_model(entry, fetched / entry.id)
    after = model_sizes(find_config(entry, fetched).config).dtype
    with open_store(checkpoint, dtype="checkpoint") as store:
        streamed = store.model.dtype
    resident = load_resident(checkpoint, dtype="checkpoint", device=CPU).dtype
    said = read_origin(fetched / entry.id).dtype
    return {planned, after, str(said), *(str(dtype).removeprefix("torch.") for dtype in (streamed, resident))}


@pytest.mark.parametrize(
    ("special", "default", "expected"),
    [
        ({}, torch.bfloat16, "bfloat16"),
        ({}, torch.float16, "float16"),
        # The first tensors by name, which transformers goes by, are in the minority.
        ({"embed": torch.bfloat16}, torch.float32, "float32"),
        ({"norm": torch.float32, "lm_head": torch.float32}, torch.bfloat16, "bfloat16"),
    ],
)
def test_all_answers_are_one(
    tmp_path: Path, special: dict[str, torch.dtype], default: torch.dtype, expected: str
) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path / "llama")
    store_in(checkpoint, special, default)
    edit_config(checkpoint)
    assert answers(checkpoint) == {expected}


def test_what_the_text_part_says_counts(tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint("gemma3", tmp_path / "towers")
    config = json.loads((checkpoint / "config.json").read_text())
    edit_config(checkpoint, text_config={**config["text_config"], "dtype": "float16"})
    assert answers(checkpoint) == {"float16"}


@pytest.mark.parametrize("said", ["bfloat61", "int8", "float8_e4m3fn", 16])
def test_a_dtype_that_is_none(tmp_path: Path, said: object) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path / "llama")
    edit_config(checkpoint, torch_dtype=said)
    with pytest.raises(StudyError) as caught:
        open_store(checkpoint, dtype="checkpoint")
    assert (caught.value.key, caught.value.got) == ("torch_dtype", said)


def test_on_the_hub_the_headers_are_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path / "llama", dtype=torch.bfloat16)
    edit_config(checkpoint)
    entry = model_entry(HubSource("owner/tiny"))
    with reachable_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add("owner/tiny", {path.name: path.read_bytes() for path in checkpoint.iterdir()})
        planned = model_sizes(find_config(entry, tmp_path / "none").config).dtype
        fetch_model(entry, tmp_path / "fetched")
        whole = [r for r in hub.requests if r.path.endswith(".safetensors") and r.byte_range is None]
        assert not [request for request in whole if request.method == "GET"], "weights wait until they are needed"
        with open_store(fetched_shards(tmp_path / "fetched", tmp_path / "weights"), dtype="checkpoint") as store:
            assert (planned, read_origin(tmp_path / "fetched").dtype, store.model.dtype) == (
                "bfloat16",
                "bfloat16",
                torch.bfloat16,
            )
