"""Layers over several cards, as far as a machine without any can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.placement import balanced_placement
from outlier_moe.recording.resident import record_resident
from outlier_moe.recording.writer import RecordingWriter
from tests import zoo
from tests.tiny_models import N_LAYERS, tiny_model

TOKENS = (zoo.tokens(2).numpy() % 96).astype("uint32")


def on_meta() -> PreTrainedModel:
    config = LlamaConfig(
        num_hidden_layers=12, hidden_size=256, intermediate_size=512, num_attention_heads=4, vocab_size=512
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("n_cards", [2, 3])
def test_cards_hold_alike_and_no_layer_is_divided(n_cards: int) -> None:
    model = on_meta()
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    placed = balanced_placement(model, dict.fromkeys(range(n_cards), n_bytes))
    held = [0] * n_cards
    for name, parameter in model.named_parameters():
        [device] = [device for path, device in placed.items() if name == path or name.startswith(f"{path}.")]
        held[int(str(device))] += parameter.nbytes
    layer = sum(parameter.nbytes for parameter in find_structure(model).layers[0].parameters())
    assert sum(held) == n_bytes
    assert max(held) <= n_bytes / n_cards + 2 * layer
    assert {path for path in placed if path.startswith("model.layers.")} == {f"model.layers.{i}" for i in range(12)}


def test_cards_that_are_too_small_are_told() -> None:
    with pytest.raises(StudyError, match="does not fit onto the cards") as told:
        balanced_placement(on_meta(), {0: 2**20, 1: 2**20})
    assert told.value.key == "record_outliers.mode"


def recorded(model: PreTrainedModel, directory: Path) -> dict[str, bytes]:
    options = RecordOptions(chunk=2, floor=0.5)
    with RecordingWriter(directory, tokens=TOKENS, n_peaks=3, n_layers=N_LAYERS, ladder=options.ladder) as writer:
        record_resident(model, find_structure(model), TOKENS, options, writer, advance=lambda n: None)
        writer.finish({}, str)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_model_with_accelerates_hooks_gives_the_same_tables(name: str, tmp_path: Path) -> None:
    expected = recorded(tiny_model(name), tmp_path / "plain")
    device_map: dict[str, str | int | torch.device] = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.norm": "cpu",
        "lm_head": "disk",
    }
    # What lies on the disk comes in before its module runs, as on another card.
    device_map |= {f"model.layers.{i}": "disk" if i else "cpu" for i in range(N_LAYERS)}
    model = tiny_model(name)
    disk = str(tmp_path / "disk")
    # The annotation says torch.device; only the name is compared with those of the map.
    dispatch_model(model, device_map, main_device="cpu", offload_dir=disk, force_hooks=True)  # pyright: ignore[reportArgumentType]
    assert recorded(model, tmp_path / "dispatched") == expected


def test_the_union_goes_with_the_chunk() -> None:
    observer = ChunkObserver(("residual",), Ladder(floor=1.0), first_sequence=0)
    observer.observe("residual", 0, torch.ones(1, 3, 8))
    maximum = observer._maximum("residual", 1, torch.ones(1, 3, 8, device="meta"))
    assert maximum.union.device.type == "meta"
