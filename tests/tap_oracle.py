"""What the taps must show, written from their definitions: hooks at the very projections, found by their own names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from outlier_moe.architectures.structure import DecoderStructure

PROJECTION = re.compile(
    r"(q|k|v|qkv|kv|q_a)_proj|kv_a_proj_with_mqa|in_proj\w*|query_key_value|c_attn|Wqkv|linear_[xy]"
)
FEED_FORWARD = re.compile(r"gate_proj|up_proj|gate_up_proj|fc1|fc_in|c_fc|dense_h_to_4h|w[13]|input_linear|proj_1")
ROUTED = re.compile(r"experts|gate|router")
# Parts with projections of their own that are no attention: indexers, norms with a matrix, and the experts of JetMoE's.
NO_ATTENTION = re.compile(r"indexer|compressor|layernorm\.|self_attention\.experts")


class Read:
    """Everything that the projections, and the feed-forward matrices, experts and routers, of each layer read."""

    def __init__(self) -> None:
        self.attn_in: dict[int, list[Tensor]] = defaultdict(list)
        self.mlp_in: dict[int, list[Tensor]] = defaultdict(list)


@contextmanager
def read_by_the_projections(structure: DecoderStructure, *, d_model: int, n_tokens: int) -> Iterator[Read]:
    """Note what comes in at the projections while the model runs; results of the mixer itself are never asked for."""
    read = Read()
    handles = []
    for index, layer in enumerate(structure.layers):
        for path, module in layer.named_modules():
            into = _tap_of(path, module)
            if into is None:
                continue
            found = (read.attn_in if into == "attn_in" else read.mlp_in)[index]

            def note(module: nn.Module, args: tuple, kwargs: dict, found: list[Tensor] = found) -> None:
                x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
                if x.shape[-1] == d_model and x.numel() == n_tokens * d_model:
                    found.append(x.detach().reshape(n_tokens, d_model).clone())

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _tap_of(path: str, module: nn.Module) -> str | None:
    name = path.rpartition(".")[2]
    if NO_ATTENTION.search(path):
        return None
    matrices = any(p.ndim >= 2 for p in module.parameters())
    attention = re.search(r"attn|attention|mamba|mixer|conv|temporal_block", path)
    if PROJECTION.fullmatch(name) and attention and any(p.ndim == 2 for p in module.parameters(recurse=False)):
        return "attn_in"
    dense = FEED_FORWARD.fullmatch(name) and not re.search(r"attn|attention|mamba|conv\b", path)
    # A router that stands in the layer itself has a norm of its own before its matrix (Gemma 4).
    routed = ROUTED.fullmatch(name) and "." in path or name == "experts"
    return "mlp_in" if matrices and (dense or routed) else None


def merged(tensors: list[Tensor]) -> Tensor:
    """Of several tensors the element of largest magnitude, place by place; the first of equals."""
    stacked = torch.stack(tensors)
    return stacked.gather(0, stacked.abs().argmax(dim=0, keepdim=True))[0]
