"""What is measured on a model at a checkpoint, in long form: a row per measure, place and layer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from outlier_moe.architectures.layer_parts import find_parts, matrix_modules
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.scale_sweep.spectra import SparsityTally, Spectrum, each, feature_spectrum, spectrum

ROWS_PER_FEATURE = 8
"""Samples of which feature ranks are taken, for each feature of the model. Few samples bound a rank from above; were
they as many for all, wider models would be bound more. Of samples without any structure the effective rank is 0.98 of
min(m, n) so, whatever the width."""


class Row(NamedTuple):
    """One measure."""

    metric: str
    place: str
    """The matrix, the tap, or the part of the data."""
    layer: int | None
    """The layer; None for what is of the model as a whole."""
    value: float | None
    """None where it does not exist, as after a divergence."""


def weight_ranks(structure: DecoderStructure) -> list[Row]:
    """The ranks of every matrix of every layer; query, key and value each for itself, also where they are fused."""
    places = [
        (name, index, matrix) for index, layer in enumerate(structure.layers) for name, matrix in _matrices(layer)
    ]
    found = each(spectrum, [matrix for _, _, matrix in places])
    return [
        row
        for (name, index, _), of_matrix in zip(places, found, strict=True)
        for row in _spectrum_rows("weight", name, index, of_matrix)
    ]


def _matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in layer.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield from zip(("q_proj", "k_proj", "v_proj"), module.in_proj_weight.chunk(3), strict=True)
        elif isinstance(module, nn.Linear):
            yield name.rsplit(".", 1)[-1], module.weight


def _spectrum_rows(of: str, place: str, layer: int | None, found: Spectrum | None) -> list[Row]:
    values = dict.fromkeys(Spectrum._fields) if found is None else found._asdict()
    return [Row(f"{of}_{name}", place, layer, value) for name, value in values.items()]


class DrawnRows:
    """Activations at some of the positions that go by, drawn evenly from all inputs: the same at every checkpoint.

    Args:
        n_inputs: Inputs that will go by.
        n_most: Positions to take, if there are so many.
    """

    def __init__(self, n_inputs: int, n_most: int) -> None:
        self.n_inputs = n_inputs
        self.n_most = n_most
        self.n_passed = 0
        self._drawn: Tensor | None = None

    def take(self, activations: Float[Tensor, "input *position feature"]) -> Float[Tensor, "row feature"]:
        """The drawn positions of some inputs."""
        rows = activations.detach().flatten(0, -2)
        if self._drawn is None:
            n_all = self.n_inputs * (len(rows) // len(activations))
            drawn = np.random.default_rng(0).choice(n_all, min(n_all, self.n_most), replace=False)
            self._drawn = torch.from_numpy(np.sort(drawn))
        first = self.n_passed
        self.n_passed += len(rows)
        is_here = (self._drawn >= first) & (self._drawn < self.n_passed)
        return rows[(self._drawn[is_here] - first).to(rows.device)]


class FeatureMeter:
    """Reads, in the forwards of its block, each layer's output, the activations after its GELU, and the head's input.

    Args:
        structure: The model's parts.
        head: What reads the last features.
        n_inputs: Inputs that will go through the model, each once.
        d_model: Features of the residual stream.
    """

    def __init__(self, structure: DecoderStructure, head: nn.Module, *, n_inputs: int, d_model: int) -> None:
        self.structure = structure
        self.head = head
        n_layers, n_most = len(structure.layers), ROWS_PER_FEATURE * d_model
        # Of each layer, and of what the head reads.
        self.drawn = [DrawnRows(n_inputs, n_most) for _ in range(n_layers + 1)]
        self.features: list[list[Tensor]] = [[] for _ in self.drawn]
        self.drawn_inner = [DrawnRows(n_inputs, n_most) for _ in range(n_layers)]
        self.inner = [SparsityTally() for _ in self.drawn_inner]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Read activations of the forwards in the block."""
        parts = find_parts(self.structure)
        with ExitStack() as hooks:
            for index, layer in enumerate(self.structure.layers):
                last = matrix_modules(parts[index].feed_forwards[0])[-1]
                hooks.enter_context(last.register_forward_pre_hook(self._inner_hook(index)))
                hooks.enter_context(layer.register_forward_hook(self._output_hook(index)))
            hooks.enter_context(self.head.register_forward_pre_hook(self._head_hook))
            yield

    def _inner_hook(self, layer: int):  # noqa: ANN202
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inner[layer].add(self.drawn_inner[layer].take(args[0]).float())

        return hook

    def _output_hook(self, layer: int):  # noqa: ANN202
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._keep(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    def _head_hook(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._keep(len(self.inner), args[0])

    def _keep(self, place: int, activations: Tensor) -> None:
        # A copy on the CPU: the model may go on to change what it gave.
        self.features[place].append(self.drawn[place].take(activations).to("cpu", torch.float32, copy=True))

    def rows(self) -> list[Row]:
        """Feature ranks and sparsity, layer by layer, and the ranks of what the head reads."""
        rows = []
        features = list(map(torch.cat, self.features))
        *of_layers, of_head = zip(features, each(feature_spectrum, features), strict=True)
        for index, (sampled, ranks) in enumerate(of_layers):
            rows += _feature_rows("residual", index, sampled, ranks)
            sparsity = self.inner[index].result()
            rows += [Row(f"activation_{name}", "ffn", index, value) for name, value in sparsity._asdict().items()]
        return rows + _feature_rows("head", None, *of_head)


def _feature_rows(
    place: str, layer: int | None, features: Float[Tensor, "row feature"], ranks: Spectrum | None
) -> list[Row]:
    n_rows = Row("feature_n_rows", place, layer, float(len(features)))
    return [*_spectrum_rows("feature", place, layer, ranks), n_rows]


@contextmanager
def clocked(rows: list[Row], what: str) -> Iterator[None]:
    """Measure the time of a block."""
    started = time.monotonic()
    yield
    rows.append(Row("time_s", what, None, time.monotonic() - started))
