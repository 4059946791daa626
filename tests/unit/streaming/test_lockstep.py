"""A streamed run gives what the resident model gives, to the last bit, whatever the family."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.errors import StudyError
from outlier_moe.streaming.call_arguments import Description, describe
from outlier_moe.streaming.forgotten import check_remembered, finished_layers, remember
from outlier_moe.streaming.layer_store import LayerStore
from outlier_moe.streaming.lockstep import Lockstep
from tests import zoo
from tests.streaming import CPU, all_equal, forwards_of, open_store, ready_lockstep, resident_hidden, streamed_hidden

IN_BFLOAT16 = ("llama", "gemma4_text", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "jamba")


class Stops:
    """Where each forward of one run stood before each layer, and what the layers gave."""

    def __init__(self, store: LayerStore) -> None:
        self.calls: dict[tuple[int, int], tuple[Description, dict[str, Tensor]]] = {}
        self.outputs: dict[tuple[int, int], Description] = {}
        self.running = 0
        store.plan()
        hooks = [
            layer.register_forward_hook(lambda module, args, output, layer=index: self._note(layer, output))
            for index, layer in enumerate(store.structure.layers)
        ]
        with ready_lockstep(store) as (lockstep, reader):
            lockstep._awake = self._awake
            lockstep.start()
            for layer in lockstep.layers(reader.present):
                for number, forward in enumerate(lockstep.forwards):
                    if forward.call is not None:
                        tensors: dict[str, Tensor] = {}
                        call = describe((forward.call.args, forward.call.kwargs), tensors)
                        kept = {path: tensor.clone() for path, tensor in tensors.items()}
                        self.calls[layer + 1, number] = call, kept
            self.results = lockstep.results
        for hook in hooks:
            hook.remove()

    @contextlib.contextmanager
    def _awake(self, number: int) -> Iterator[None]:
        self.running = number
        yield

    def _note(self, layer: int, output: Any) -> None:
        self.outputs[self.running, layer] = describe(output, {})

    def resumed(self, store: LayerStore, n_finished: int) -> list[Tensor]:
        """What a run gives that begins behind some layers."""
        with ready_lockstep(store, first_layer=n_finished) as (lockstep, reader):
            lockstep._awake = self._awake
            with finished_layers(store.structure, lambda i: self.outputs[self.running, i], n_finished, CPU):
                lockstep.start()
            for number, forward in enumerate(lockstep.forwards):
                assert forward.call is not None
                remember(forward.call, *self.calls[n_finished, number])
            for _ in lockstep.layers(reader.present):
                for forward in lockstep.forwards:
                    check_remembered(forward.call)
            return lockstep.results


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_family_streams_and_resumes_to_the_last_bit(name: str, tmp_path: Path) -> None:
    zoo.save_checkpoint(name, tmp_path)
    expected = resident_hidden(tmp_path)
    with open_store(tmp_path) as store:
        stops = Stops(store)
        assert all_equal(stops.results, expected)
        assert all_equal(stops.resumed(store, store.n_layers // 2), expected)


@pytest.mark.parametrize("name", ["llama", "gemma4_text", "inkling2_text", "glm_moe_dsa+shared", "mistral_large4"])
def test_a_run_resumes_after_any_layer(name: str, tmp_path: Path) -> None:
    zoo.save_checkpoint(name, tmp_path)
    with open_store(tmp_path) as store:
        stops = Stops(store)
        for n_finished in range(1, store.n_layers):
            assert all_equal(stops.resumed(store, n_finished), stops.results)


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_bfloat16_streams_to_the_last_bit(name: str, tmp_path: Path) -> None:
    zoo.save_checkpoint(name, tmp_path, dtype=torch.bfloat16)
    with open_store(tmp_path, dtype="checkpoint") as store:
        assert store.model.dtype == torch.bfloat16
        assert all_equal(streamed_hidden(store), resident_hidden(tmp_path, dtype=torch.bfloat16))


def test_all_forwards_pass_a_layer_before_any_goes_on(tmp_path: Path) -> None:
    zoo.save_checkpoint("llama", tmp_path)
    order: list[int] = []
    with open_store(tmp_path) as store:
        for index, layer in enumerate(store.structure.layers):
            layer.register_forward_hook(lambda *_, index=index: order.append(index))
        streamed_hidden(store)
    assert order == sorted(order)
    assert len(order) == 3 * store.n_layers


def test_layers_hold_weights_only_while_they_run(tmp_path: Path) -> None:
    zoo.save_checkpoint("mixtral", tmp_path)
    with open_store(tmp_path) as store:

        def present() -> set[int]:
            layers = enumerate(store.structure.layers)
            return {index for index, layer in layers if not all(p.is_meta for p in layer.parameters())}

        for index, layer in enumerate(store.structure.layers):
            layer.register_forward_hook(lambda *_, index=index: _assert_equal(present(), {index}))
        streamed_hidden(store)
        assert present() == set()


def _assert_equal(got: object, expected: object) -> None:
    assert got == expected


def test_an_error_in_one_forward_ends_all_and_leaves_nothing(tmp_path: Path) -> None:
    zoo.save_checkpoint("llama", tmp_path)
    left: list[str] = []
    with open_store(tmp_path) as store:
        hooks = [len(layer._forward_pre_hooks) for layer in store.structure.layers]

        def fail(*_: object) -> None:
            raise ArithmeticError("in the third layer")

        handle = store.structure.layers[2].register_forward_hook(fail)
        backbone = store.structure.backbone
        plain = backbone.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return plain(*args, **kwargs)
            finally:
                left.append("unwound")

        backbone.forward = watched
        with pytest.raises(ArithmeticError, match="third layer"):
            streamed_hidden(store)
        handle.remove()
        del backbone.forward
        assert left == ["unwound"] * 3
        assert [len(layer._forward_pre_hooks) for layer in store.structure.layers] == hooks
        assert torch.is_grad_enabled()
        assert all_equal(streamed_hidden(store), resident_hidden(tmp_path))


def test_a_model_that_changes_settings_of_the_thread_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                with torch.enable_grad():
                    x = layer(x)
            return x

    model = Twice()
    structure = _structure(model)
    runs = [lambda: model(torch.ones(2))]
    with pytest.raises(StudyError, match="settings for the thread"):
        with Lockstep(structure, runs, awake=lambda number: contextlib.nullcontext()) as lockstep:
            lockstep.start()


def _structure(model: nn.Module) -> DecoderStructure:
    structure = object.__new__(DecoderStructure)
    object.__setattr__(structure, "prefix", "layers")
    object.__setattr__(structure, "layers", model.layers)
    object.__setattr__(structure, "backbone", model)
    return structure


def test_layers_called_outside_a_run_do_not_park(tmp_path: Path) -> None:
    zoo.save_checkpoint("llama", tmp_path)
    with open_store(tmp_path) as store:
        outside = zoo.tiny_model("llama")
        with Lockstep(store.structure, forwards_of(store), awake=lambda number: contextlib.nullcontext()):
            with torch.no_grad():
                assert outside(input_ids=zoo.tokens()).logits.isfinite().all()
