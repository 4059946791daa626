"""Taps and views: where activations are read, and which taps are judged together."""

from __future__ import annotations

from typing import Literal, get_args

Tap = Literal["attn_in", "mlp_in", "residual", "residual_rms"]
"""`attn_in`: what the query/key/value projections read. `mlp_in`: what the FFN or the router reads. Both after the
norm. `residual`: output of a decoder layer. `residual_rms`: the same divided by each token's own root mean square."""

View = Literal["linear_inputs", "residual", "residual_rms"]

TAPS: tuple[Tap, ...] = get_args(Tap)

VIEWS: dict[View, tuple[Tap, ...]] = {
    "linear_inputs": ("attn_in", "mlp_in"),
    "residual": ("residual",),
    "residual_rms": ("residual_rms",),
}

VIEW_OF: dict[Tap, View] = {tap: view for view, taps in VIEWS.items() for tap in taps}
