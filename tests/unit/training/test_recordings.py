"""What is recorded of a model in memory is what the model itself says of its hidden states, for images and for text."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import PreTrainedModel

from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.scale_sweep.study import Geometry, Scale
from outlier_moe.scale_sweep.vit import new_vit
from outlier_moe.tables.recording import read_recording
from outlier_moe.training.recordings import record_in_training
from outlier_moe.upcycling.pairs import model_config, new_model
from outlier_moe.upcycling.study import ModelSizes


def vit() -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    # Four channels by eight rows: nothing tells the shape of the positions but the layers themselves.
    return new_vit(Scale(16, 2, 2), Geometry(8, 4, 2)), {"pixel_values": torch.randn(5, 4, 8, 8)}


def simple() -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    sizes = ModelSizes(vocab_size=40, d_model=16, n_layers=2, n_heads=2, d_ff=24, sequence_length=9)
    return new_model(model_config("simple", sizes)), {"input_ids": torch.randint(0, 40, (5, 9))}


@pytest.mark.parametrize("make", [vit, simple])
def test_the_tables_are_those_of_the_models_hidden_states(make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    structure = find_structure(model)
    hidden: list[torch.Tensor] = []
    with torch.no_grad(), ExitStack() as hooks:
        for layer in structure.layers:
            hooks.enter_context(layer.register_forward_hook(lambda *seen: hidden.append(seen[2])))
        hooks.enter_context(structure.layers[0].register_forward_pre_hook(lambda layer, args: hidden.append(args[0])))
        structure.backbone(**inputs)
        name = "layernorm_before" if make is vit else "input_layernorm"
        read = [layer.get_submodule(name)(x) for layer, x in zip(structure.layers, hidden, strict=False)]
    positions = np.tile(np.arange(hidden[0].shape[1], dtype=np.uint32), (5, 1))
    options = RecordOptions(floor=0.125)
    record_in_training(
        model, structure, inputs, positions, tmp_path / "outliers", options, decode=lambda ids: str(ids[0]), chunk=5
    )
    recording = read_recording(tmp_path / "outliers")
    sites = recording.sites().with_columns(pl.col("tap").cast(pl.String)).sort("layer", "sequence")
    for tap, expected in (("residual", hidden[1:]), ("attn_in", read)):
        found = sites.filter(tap=tap)["top_magnitude"].to_numpy().reshape(2, 5)
        assert np.array_equal(found, torch.stack([x.abs().amax(dim=(1, 2)) for x in expected]).numpy())
    peaks = recording.peaks().filter(pl.col("tap").cast(pl.String) == "residual", rank=0, layer=1).sort("sequence")
    flat = hidden[2].abs().flatten(1).argmax(dim=1)
    assert peaks["position"].to_list() == (flat // 16).tolist()
    assert peaks["text"].to_list() == [str(position) for position in (flat // 16).tolist()]
    assert recording.sequences()["loss_nats"].null_count() == 5
