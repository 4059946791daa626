"""Forwards that wait for the others at a layer, with their tensors off the device where it lacks room."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from outlier_moe.recording.observer import ChunkObserver
from outlier_moe.streaming.call_arguments import tensors_in
from outlier_moe.streaming.lockstep import LayerCall

Waiting = Literal["auto", "device", "cpu"]
"""Where the hidden states of chunks are while others run; `auto` takes the CPU if they would fill the device."""

LARGEST_SHARE = 1 / 4
SMALLEST_BYTES = 2**18


def waits_off_device(waiting: Waiting, *, device: torch.device, n_bytes: int) -> bool:
    """Whether waiting chunks give up the device's memory.

    Args:
        waiting: What is wished.
        device: Where layers run.
        n_bytes: What all chunks hold while they wait.
    """
    if device.type == "cpu" or waiting == "device":
        return False
    if waiting == "cpu" or device.type != "cuda":
        return waiting == "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes > LARGEST_SHARE * free


def move_forward(call: LayerCall | None, observer: ChunkObserver, device: torch.device) -> None:
    """Move what a parked forward is about to be called with, and its maxima, to a device.

    The tensors stay the same objects, so that the model's frames see them wherever they are.
    """
    if call is not None:
        move_large(tensors_in((call.args, call.kwargs)), device)
    for maximum in observer.maxima.values():
        maximum.union = maximum.union.to(device)


def move_large(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Move the data of tensors that are worth it; those that only look large, such as expanded masks, stay."""
    for tensor in tensors:
        if tensor.nbytes >= SMALLEST_BYTES and tensor.is_contiguous() and tensor.device != device:
            tensor.data = tensor.data.to(device)
