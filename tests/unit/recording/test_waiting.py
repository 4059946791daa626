"""Waiting forwards can leave the device, and come back as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.recording import waiting
from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.recording.waiting import move_forward, move_large, waits_off_device
from outlier_moe.streaming.call_arguments import tensors_in
from outlier_moe.streaming.lockstep import Lockstep
from tests import zoo
from tests.streaming import CPU, all_equal, forwards_of, open_store, ready_lockstep, resident_hidden

META = torch.device("meta")


class Shelf:
    """Where tensors' values are while they wait, in the place of another device's memory."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[Tensor, Tensor]] = {}
        self.most = 0

    def put(self, tensors: Iterator[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_contiguous() and tensor.is_floating_point() and id(tensor) not in self.values:
                self.values[id(tensor)] = tensor, tensor.data.clone()
                tensor.data.fill_(torch.nan)
        self.most = max(self.most, len(self.values))

    def take(self, tensors: Iterator[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) in self.values:
                tensor.data.copy_(self.values.pop(id(tensor))[1])


@pytest.mark.parametrize("name", ["llama", "gemma4_text", "deepseek_v4", "mixtral"])
def test_a_forward_sees_its_tensors_wherever_they_were(name: str, tmp_path: Path) -> None:
    """What is moved is all that a forward needs of its values while it waits: here they are wiped meanwhile."""
    zoo.save_checkpoint(name, tmp_path)
    shelf = Shelf()
    with open_store(tmp_path) as store, ready_lockstep(store) as (lockstep, reader):

        @contextlib.contextmanager
        def awake(number: int) -> Iterator[None]:
            forward = lockstep.forwards[number]
            if forward.call is not None:
                shelf.take(hidden_states(forward.call))
            yield
            if forward.call is not None:
                shelf.put(hidden_states(forward.call))

        lockstep._awake = awake
        lockstep.start()
        for _ in lockstep.layers(reader.present):
            pass
        assert all_equal(lockstep.results, resident_hidden(tmp_path))
    assert shelf.most >= 3 and not shelf.values


def hidden_states(call: Any) -> Iterator[Tensor]:
    return (tensor for tensor in tensors_in((call.args, call.kwargs)) if tensor.nbytes >= 3000)


def test_what_is_large_moves_and_stays_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, torch.device]] = []
    plain = Tensor.to

    def to(tensor: Tensor, device: torch.device) -> Tensor:
        moved.append((tensor.nbytes, device))
        return plain(tensor, device)

    monkeypatch.setattr(Tensor, "to", to)
    hidden = torch.ones(4, 64, 512)
    view_of_little = torch.ones(1, 512).expand(512, 512)
    small = torch.ones(3)
    move_large([hidden, view_of_little, small, hidden], torch.device("cpu", 0))
    assert moved == [(hidden.nbytes, torch.device("cpu", 0))] * 2 or moved == [(hidden.nbytes, torch.device("cpu", 0))]


def test_maxima_move_with_their_forward() -> None:
    observer = ChunkObserver(("residual",), Ladder(), first_sequence=0)
    observer.observe("residual", 0, torch.full((1, 2, 3), 8.0))
    move_forward(None, observer, META)
    assert observer.maxima["residual"].union.is_meta


@pytest.mark.parametrize(
    ("wish", "device", "free", "expected"),
    [
        ("auto", "cpu", 0, False),
        ("cpu", "cpu", 0, False),
        ("cpu", "mps", 0, True),
        ("device", "cuda", 0, False),
        ("cpu", "cuda", 10**12, True),
        ("auto", "cuda", 4000, False),
        ("auto", "cuda", 3999, True),
    ],
)
def test_when_forwards_leave_the_device(
    wish: waiting.Waiting, device: str, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert waits_off_device(wish, device=torch.device(device), n_bytes=1000) is expected


def test_moving_to_where_a_tensor_is_does_nothing(tmp_path: Path) -> None:
    zoo.save_checkpoint("llama", tmp_path)
    with open_store(tmp_path) as store:
        with Lockstep(store.structure, forwards_of(store), awake=lambda number: contextlib.nullcontext()):
            hidden = torch.ones(64, 64, 64)
            before = hidden.data_ptr()
            move_large([hidden], CPU)
            assert hidden.data_ptr() == before
