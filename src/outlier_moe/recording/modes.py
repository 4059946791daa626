"""Whether a model runs whole or layer by layer, when nobody says."""

from __future__ import annotations

from typing import Literal

import psutil
import torch
from transformers import PreTrainedConfig

from outlier_moe.recording.options import Dtype

Mode = Literal["resident", "streamed"]

# What the activations of a chunk, the counts and the libraries take beside the weights.
BESIDE_WEIGHTS_BYTES = 2 * 2**30


def fitting_mode(n_bytes: int, config: PreTrainedConfig, *, dtype: Dtype, device: torch.device) -> Mode:
    """Resident if the weights fit into the device's free memory with room to spare, else streamed.

    Quantised checkpoints are streamed: they are computed in full precision, and a layer is dequantised as it comes in.

    Args:
        n_bytes: What the model's safetensors take.
        config: Its configuration.
        dtype: The precision of the forward pass.
        device: Where it runs.
    """
    if getattr(config, "quantization_config", None) is not None:
        return "streamed"
    stored = config.get_text_config().dtype
    if dtype != "checkpoint" and isinstance(stored, torch.dtype):
        n_bytes = n_bytes * getattr(torch, dtype).itemsize // stored.itemsize
    return "resident" if n_bytes + BESIDE_WEIGHTS_BYTES <= free_bytes(device) else "streamed"


def free_bytes(device: torch.device) -> int:
    """The memory that a device has free; the system's for devices that share it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
