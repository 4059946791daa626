"""The hooks at the taps: they see what a model computes and change nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outlier_moe.architectures.current_forward import begin_forward, by_position, finish_layer
from outlier_moe.architectures.layer_parts import find_parts, matrix_modules
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.definitions.taps import Tap
from outlier_moe.errors import StudyError

Observe = Callable[[Tap, int, Float[Tensor, "sequence position feature"]], None]


@contextmanager
def tap_hooks(structure: DecoderStructure, taps: Collection[Tap], observe: Observe) -> Iterator[None]:
    """Call a function with each tap's tensor while the model runs: once per tap, layer and forward.

    `attn_in` and `mlp_in` are what the first matrices of a layer's token mixer and of its feed-forward part read, bit
    for bit. If a layer reads several tensors there (two sublayers of a kind, mixers side by side, a norm for each of
    query, key and value), each element is the one of largest magnitude among them, so that a feature affects the
    layer if it does at any of them. A layer without one of the parts has no such tap. `residual` is a layer's output;
    with several residual streams each stream's features are features of their own, stream after stream.

    Forwards may run in several threads or greenlets, one forward each, as long as only one of them is inside a layer
    at a time.

    Args:
        structure: The model's decoder.
        taps: The taps to observe; for `residual_rms` the observer gets `residual`, from which it is computed.
        observe: Called with the tap, the zero-based layer and the activations: the model's own tensor, which it may go
            on to change, so that what is kept of it has to be copied.

    Raises:
        StudyError: While the model runs, if a layer runs twice in one forward or its activations are not one vector a
            position.
    """
    with ExitStack() as hooks:
        hooks.enter_context(structure.backbone.register_forward_pre_hook(begin_forward, with_kwargs=True))
        parts = find_parts(structure) if {"attn_in", "mlp_in"} & set(taps) else None
        for index, layer in enumerate(structure.layers):
            sites: list[_Site] = []
            if parts is not None and "attn_in" in taps:
                sites.append(_Site("attn_in", index, parts[index].mixers, observe))
            if parts is not None and "mlp_in" in taps:
                sites.append(_Site("mlp_in", index, parts[index].feed_forwards, observe))
            for site in sites:
                site.hook(layer, hooks)
            residual = "residual" in taps or "residual_rms" in taps
            hooks.enter_context(layer.register_forward_hook(_layer_end(index, observe if residual else None)))
        yield


class _Site:
    """What the parts of one kind read in one layer; passed on at once if there is only one tensor."""

    def __init__(self, tap: Tap, layer: int, parts: tuple[nn.Module, ...], observe: Observe) -> None:
        self.tap: Tap = tap
        self.layer = layer
        self.parts = parts
        self.observe = observe
        self.offered: list[Tensor] = []
        self.waiting = False
        self.seen = False
        self.pending: list[Tensor] = []

    def hook(self, layer: nn.Module, hooks: ExitStack) -> None:
        """Register all hooks of the site."""
        if not self.parts:
            return
        hooks.enter_context(layer.register_forward_pre_hook(self._start))
        for part in self.parts:
            hooks.enter_context(part.register_forward_pre_hook(self._enter, with_kwargs=True))
            for module in matrix_modules(part):
                hooks.enter_context(module.register_forward_pre_hook(self._read, with_kwargs=True))
        hooks.enter_context(layer.register_forward_hook(self._finish))

    def _start(self, layer: nn.Module, args: tuple[object, ...]) -> None:
        self.seen = self.waiting = False
        self.pending = []

    def _enter(self, part: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        activations = _activations(args, kwargs)
        self.offered = [x for x in activations if x.shape == activations[0].shape]
        self.waiting = True

    def _read(self, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        x = next(iter(_activations(args, kwargs)), None)
        if x is None or x.shape[-1] != self.offered[0].shape[-1]:
            return
        # The first matrix can only have read what came in; later ones read results, or another tensor that came in.
        if self.waiting or any(x is other for other in self.offered[1:]):
            self.waiting = False
            self._take(x)

    def _take(self, x: Tensor) -> None:
        self.seen = True
        if len(self.parts) == 1 and len(self.offered) == 1:
            self._deliver(x)
        elif not any(x.data_ptr() == other.data_ptr() and x.numel() == other.numel() for other in self.pending):
            self.pending.append(x)

    def _finish(self, layer: nn.Module, args: tuple[object, ...], output: object) -> None:
        if self.pending:
            merged = self._by_position(self.pending[0])
            for other in self.pending[1:]:
                merged = larger_magnitude(merged, self._by_position(other))
            self.observe(self.tap, self.layer, merged)
        self.pending, self.offered = [], []
        if not self.seen:
            raise StudyError(
                "Nothing was read at a tap.",
                key=f"{self.tap} of layer {self.layer}",
                expected="a matrix of " + ", ".join(type(part).__name__ for part in self.parts) + " that is called",
                remedy="Leave this tap out of record_outliers.taps for this model.",
            )

    def _deliver(self, x: Tensor) -> None:
        self.observe(self.tap, self.layer, self._by_position(x))

    def _by_position(self, x: Tensor) -> Float[Tensor, "sequence position feature"]:
        return by_position(x, key=f"{self.tap} of layer {self.layer}")


def _activations(args: tuple[object, ...], kwargs: Mapping[str, object]) -> list[Tensor]:
    """The floating tensors that a module is called with, its hidden states first."""
    values = [*args, kwargs.get("hidden_states"), *(kwargs[name] for name in kwargs if name != "hidden_states")]
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


def larger_magnitude(
    a: Float[Tensor, "sequence position feature"], b: Float[Tensor, "sequence position feature"]
) -> Float[Tensor, "sequence position feature"]:
    """The element of larger magnitude of each pair; NaN counts as largest, so that none is lost."""
    return torch.where((a.abs() >= b.abs()) | a.isnan(), a, b)


def _layer_end(index: int, observe: Observe | None) -> Callable[[nn.Module, object, object], None]:
    def end(layer: nn.Module, args: object, output: object) -> None:
        if not finish_layer(index):
            raise StudyError(
                "A decoder layer runs more than once in one forward, so that no one layer says how deep a site is.",
                key=f"layer {index} ({type(layer).__name__})",
                expected="layers that run once each",
                remedy="This family cannot be recorded; see the table of families in the documentation.",
            )
        if observe is not None:
            hidden = output[0] if isinstance(output, tuple | list) else output
            assert isinstance(hidden, Tensor)
            observe("residual", index, by_position(hidden, key=f"residual of layer {index}"))

    return end
