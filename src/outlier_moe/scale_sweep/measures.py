"""What is measured on a model at a checkpoint, in long form: a row per measure, place and layer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from outlier_moe.architectures.layer_parts import find_parts, matrix_modules
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.scale_sweep.spectra import SparsityTally, Spectrum, feature_spectrum, spectrum

MOST_FEATURE_ROWS = 4096
"""Samples of which feature ranks are taken at most; at least as many as features, but for the widest layers' parts."""


class Row(NamedTuple):
    """One measure."""

    metric: str
    """Its name."""
    place: str
    """The matrix, the tap, or the part of the data that it is of."""
    layer: int | None
    """The layer; None for what is of the model as a whole."""
    value: float | None
    """None where it does not exist, as after a divergence."""


def weight_ranks(structure: DecoderStructure) -> list[Row]:
    """The ranks of every matrix of every layer; query, key and value each for itself, also where they are fused."""
    rows = []
    for index, layer in enumerate(structure.layers):
        for name, matrix in _matrices(layer):
            rows += _spectrum_rows("weight", name, index, spectrum(matrix))
    return rows


def _matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in layer.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield from zip(("q_proj", "k_proj", "v_proj"), module.in_proj_weight.chunk(3), strict=True)
        elif isinstance(module, nn.Linear):
            yield name.rsplit(".", 1)[-1], module.weight


def _spectrum_rows(of: str, place: str, layer: int | None, found: Spectrum | None) -> list[Row]:
    values = dict.fromkeys(Spectrum._fields) if found is None else found._asdict()
    return [Row(f"{of}_{name}", place, layer, value) for name, value in values.items()]


class ActivationMeter:
    """Takes, from the forwards in its block, each layer's output and what stands behind the nonlinearity.

    Args:
        structure: The model's parts.
    """

    def __init__(self, structure: DecoderStructure) -> None:
        self.structure = structure
        self.features: dict[int, list[Tensor]] = {}
        self.inner = {index: SparsityTally() for index in range(len(structure.layers))}
        self.n_rows = dict.fromkeys(self.inner, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have forwards report while the block runs."""
        parts = find_parts(self.structure)
        with ExitStack() as hooks:
            for index, layer in enumerate(self.structure.layers):
                last = matrix_modules(parts[index].feed_forwards[0])[-1]
                hooks.enter_context(last.register_forward_pre_hook(self._inner_hook(index)))
                hooks.enter_context(layer.register_forward_hook(self._output_hook(index)))
            yield

    def _inner_hook(self, layer: int):  # noqa: ANN202
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inner[layer].add(args[0].detach().flatten(0, -2).float())

        return hook

    def _output_hook(self, layer: int):  # noqa: ANN202
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            room = MOST_FEATURE_ROWS - self.n_rows[layer]
            if room > 0:
                rows = hidden.detach().flatten(0, -2)[:room]
                # A copy on the CPU: the model may go on to change what it gave.
                self.features.setdefault(layer, []).append(rows.to("cpu", torch.float32, copy=True))
                self.n_rows[layer] += len(rows)

        return hook

    def rows(self) -> list[Row]:
        """Feature ranks and sparsity, layer by layer."""
        rows = []
        for index, pieces in self.features.items():
            rows += _spectrum_rows("feature", "residual", index, feature_spectrum(torch.cat(pieces)))
            sparsity = self.inner[index].result()
            rows += [Row(f"activation_{name}", "ffn", index, value) for name, value in sparsity._asdict().items()]
        return rows


class HeadMeter:
    """Takes what the head reads, from the forwards in its block."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.pieces: list[Tensor] = []
        self.n_rows = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have forwards report while the block runs."""

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            room = MOST_FEATURE_ROWS - self.n_rows
            if room > 0:
                rows = args[0].detach().flatten(0, -2)[:room]
                self.pieces.append(rows.to("cpu", torch.float32, copy=True))
                self.n_rows += len(rows)

        with self.head.register_forward_pre_hook(hook):
            yield

    def rows(self) -> list[Row]:
        """The ranks of the features that the head reads."""
        return _spectrum_rows("feature", "head", None, feature_spectrum(torch.cat(self.pieces)))


@contextmanager
def clocked(rows: list[Row], what: str) -> Iterator[None]:
    """Note how long a block takes."""
    started = time.monotonic()
    yield
    rows.append(Row("time_s", what, None, time.monotonic() - started))
