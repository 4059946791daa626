"""Resident and streamed runs of the same checkpoint, side by side, without a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from outlier_moe.architectures.model_class import model_class_for, read_config
from outlier_moe.architectures.moe_hooks import pin_experts
from outlier_moe.architectures.structure import find_structure
from outlier_moe.recording.streamed import load_streamed
from outlier_moe.streaming.layer_store import REST, LayerStore
from outlier_moe.streaming.lockstep import Lockstep
from outlier_moe.streaming.prefetch import LayerReader
from outlier_moe.streaming.shards import ShardSource
from tests import zoo

CPU = torch.device("cpu")


def batches() -> list[Tensor]:
    """Three chunks of sequences, the last one smaller."""
    tokens = zoo.tokens()
    return [tokens, tokens.flip(0, 1), tokens[:1].flip(1)]


def resident_hidden(checkpoint: Path, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What the whole model gives for each chunk, after its final norm."""
    config = read_config(checkpoint)
    model = model_class_for(config).from_pretrained(checkpoint, config=config, dtype=dtype).eval()
    structure = find_structure(model)
    pin_experts(structure)
    with torch.no_grad():
        return [structure.backbone(input_ids=rows, use_cache=False).last_hidden_state for rows in batches()]


def open_store(checkpoint: Path | ShardSource, *, dtype: str = "float32") -> LayerStore:
    """A checkpoint, layer by layer, as the tests run it."""
    store = load_streamed(checkpoint, dtype=dtype, device=CPU)  # type: ignore[arg-type]
    pin_experts(store.structure)
    return store


def forwards_of(store: LayerStore) -> list[Callable[[], Tensor]]:
    """The forward of each chunk."""
    backbone = store.structure.backbone
    return [lambda rows=rows: backbone(input_ids=rows, use_cache=False).last_hidden_state for rows in batches()]


@contextmanager
def ready_lockstep(store: LayerStore, *, first_layer: int = 0) -> Iterator[tuple[Lockstep[Tensor], LayerReader]]:
    """Forwards that wait to be started, and what brings the layers in."""
    store.plan(first_layer=first_layer)
    awake: Callable[[int], nullcontext[None]] = lambda number: nullcontext()  # noqa: E731
    with (
        LayerReader(store, range(first_layer, store.n_layers)) as reader,
        Lockstep(store.structure, forwards_of(store), awake=awake) as lockstep,
    ):
        reader.bring_in(REST, then=first_layer)
        yield lockstep, reader


def streamed_hidden(store: LayerStore) -> list[Tensor]:
    """What the streamed model gives for each chunk."""
    with ready_lockstep(store) as (lockstep, reader):
        lockstep.start()
        assert list(lockstep.layers(reader.present)) == list(range(store.n_layers))
        return lockstep.results


def all_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether all tensors are the same to the last bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))
