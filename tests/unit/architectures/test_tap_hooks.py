from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from outlier_moe.architectures.current_forward import begin_forward, by_position, finish_layer
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.architectures.tap_hooks import larger_magnitude, tap_hooks
from outlier_moe.definitions.taps import TAPS, Tap
from outlier_moe.errors import StudyError
from tests import zoo


def run(structure: DecoderStructure) -> Tensor:
    with torch.no_grad():
        return structure.backbone(input_ids=zoo.tokens(), use_cache=False).last_hidden_state


def observed(name: str, taps: tuple[Tap, ...]) -> dict[tuple[Tap, int], Tensor]:
    """What each tap shows, once per tap and layer."""
    structure = find_structure(zoo.tiny_model(name))
    seen: dict[tuple[Tap, int], Tensor] = {}

    def note(tap: Tap, layer: int, x: Tensor) -> None:
        assert (tap, layer) not in seen
        seen[tap, layer] = x.clone()

    with tap_hooks(structure, taps, note):
        run(structure)
    return seen


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        (("attn_in", "mlp_in"), {"attn_in", "mlp_in"}),
        (("mlp_in",), {"mlp_in"}),
        (("residual",), {"residual"}),
        # The observer computes it from the residual stream.
        (("residual_rms",), {"residual"}),
        (TAPS, {"attn_in", "mlp_in", "residual"}),
        ((), set()),
    ],
)
def test_the_taps_asked_for_and_no_others(taps: tuple[Tap, ...], expected: set[Tap]) -> None:
    seen = Counter(tap for tap, _ in observed("llama", taps))
    assert seen == dict.fromkeys(expected, zoo.N_LAYERS)


def test_a_layer_is_seen_in_the_order_in_which_it_computes() -> None:
    structure = find_structure(zoo.tiny_model("llama"))
    order: list[tuple[int, Tap]] = []
    with tap_hooks(structure, TAPS, lambda tap, layer, x: order.append((layer, tap))):
        run(structure)
    assert order == [(layer, tap) for layer in range(zoo.N_LAYERS) for tap in ("attn_in", "mlp_in", "residual")]


@pytest.mark.parametrize("name", ["opt", "mixtral", "llama4_text", "gemma4_text+moe"])
def test_flattened_tokens_come_out_by_sequence_and_position(name: str) -> None:
    seen = observed(name, ("mlp_in",))
    assert {x.shape for x in seen.values()} == {(*zoo.tokens().shape, zoo.D_MODEL)}


@pytest.mark.parametrize("name", ["gemma3n_text", "deepseek_v4", "glm5_next"])
def test_residual_streams_are_features_of_their_own(name: str) -> None:
    structure = find_structure(zoo.tiny_model(name))
    raw: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        raw.append(output[0] if isinstance(output, tuple) else output)

    handle = structure.layers[0].register_forward_hook(note)
    seen: dict[int, Tensor] = {}
    with tap_hooks(structure, ("residual",), lambda tap, layer, x: seen.__setitem__(layer, x)):
        run(structure)
    handle.remove()
    streams_first = raw[0].shape[1:3] == zoo.tokens().shape
    streams = raw[0] if streams_first else raw[0].permute(2, 0, 1, 3)
    assert len(streams) > 1
    for stream, x in enumerate(streams):
        assert torch.equal(seen[0][..., stream * zoo.D_MODEL : (stream + 1) * zoo.D_MODEL], x)


@pytest.mark.parametrize("name", ["falcon_h1+multipliers", "longcat_flash", "inkling2_text", "gemma4_text+moe"])
def test_these_families_do_read_several_tensors_at_a_tap(name: str) -> None:
    # Else the matrix over all families would not show how they are put together.
    from tests.tap_oracle import read_by_the_projections

    structure = find_structure(zoo.tiny_model(name))
    with read_by_the_projections(structure, d_model=zoo.D_MODEL, n_tokens=zoo.tokens().numel()) as read:
        run(structure)
    tap = read.mlp_in if name == "gemma4_text+moe" else read.attn_in
    last = tap[len(structure.layers) - 1]
    assert any(not torch.equal(last[0], other) for other in last[1:])


@pytest.mark.parametrize("where", ["in the observer", "in the model"])
def test_hooks_are_gone_after_an_exception(where: str) -> None:
    model = zoo.tiny_model("mixtral")
    structure = find_structure(model)
    before = n_hooks(model)
    plain = run(structure)

    def fail(*args: Any) -> None:
        assert n_hooks(model) > before
        raise RuntimeError("stop")

    handle = structure.layers[3].register_forward_hook(fail) if where == "in the model" else None
    observe = fail if handle is None else lambda *args: None
    with pytest.raises(RuntimeError, match="stop"), tap_hooks(structure, TAPS, observe):
        run(structure)
    if handle is not None:
        handle.remove()
    assert n_hooks(model) == before
    assert torch.equal(run(structure), plain)


def test_the_hooks_work_again_after_an_exception_inside_them() -> None:
    structure = find_structure(zoo.tiny_model("longcat_flash"))
    seen: list[tuple[Tap, int]] = []
    with tap_hooks(structure, ("attn_in", "mlp_in"), lambda tap, layer, x: seen.append((tap, layer))):
        handle = structure.layers[1].get_submodule("mlps.1").register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="stop"):
            run(structure)
        handle.remove()
        seen.clear()
        run(structure)
    assert Counter(seen) == {(tap, layer): 1 for tap in ("attn_in", "mlp_in") for layer in range(3)}


def _fail(*args: Any) -> None:
    raise RuntimeError("stop")


def test_a_layer_that_runs_twice_is_refused() -> None:
    model = zoo.tiny_model("llama")
    structure = find_structure(model)

    class Looping(nn.ModuleList):
        """Runs its third layer once more in the end."""

        def __iter__(self) -> Any:
            layers = list(super().__iter__())
            return iter([*layers, layers[2]])

        def __getitem__(self, chosen: Any) -> Any:
            return self if isinstance(chosen, slice) else super().__getitem__(chosen)

    structure.backbone.layers = Looping(structure.layers)
    with (
        pytest.raises(StudyError, match="more than once") as caught,
        tap_hooks(structure, ("residual",), _ignore),
    ):
        run(structure)
    assert caught.value.key == "layer 2 (LlamaDecoderLayer)"


def _ignore(tap: Tap, layer: int, x: Tensor) -> None:
    pass


def test_a_tap_where_nothing_is_read_is_refused() -> None:
    structure = find_structure(zoo.tiny_model("llama"))
    structure.layers[1].get_submodule("mlp").forward = lambda x: x
    with (
        pytest.raises(StudyError, match="Nothing was read") as caught,
        tap_hooks(structure, ("mlp_in",), _ignore),
    ):
        run(structure)
    assert caught.value.key == "mlp_in of layer 1"


def test_unknown_parts_leave_the_residual_stream() -> None:
    structure = find_structure(zoo.tiny_model("llama"))
    for layer in structure.layers:
        layer.opaque = nn.Linear(512, 512)
    seen: list[int] = []
    with tap_hooks(structure, ("residual",), lambda tap, layer, x: seen.append(layer)):
        run(structure)
    assert seen == list(range(zoo.N_LAYERS))
    with pytest.raises(StudyError, match="cannot be told"), tap_hooks(structure, ("attn_in",), _ignore):
        run(structure)


activations = arrays.arrays("float32", (2, 3, 4), elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@given(a=activations, b=activations)
def test_the_larger_magnitude_loses_no_value(a: Any, b: Any) -> None:
    whole = larger_magnitude(torch.from_numpy(a), torch.from_numpy(b)).flatten().tolist()
    for merged, x, y in zip(whole, a.flatten().tolist(), b.flatten().tolist(), strict=True):
        if x != x or y != y:
            assert merged != merged
        else:
            assert merged == (x if abs(x) >= abs(y) else y)


def test_forwards_in_other_contexts_have_shapes_of_their_own() -> None:
    shapes = [(2, 6), (3, 4)]
    contexts = [copy_context() for _ in shapes]
    for context, shape in zip(contexts, shapes, strict=True):
        context.run(begin_forward, nn.Identity(), (), {"input_ids": torch.zeros(shape)})
    flat = torch.arange(24.0).reshape(12, 2)
    for context, shape in zip(contexts, shapes, strict=True):
        assert context.run(by_position, flat, key="x").shape == (*shape, 2)
        assert context.run(finish_layer, 0)
        assert not context.run(finish_layer, 0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 5), (2, 3, 5)),
        ((6, 5), (2, 3, 5)),
        ((2, 3, 4, 5), (2, 3, 20)),
        ((4, 2, 3, 5), (2, 3, 20)),
        ((7, 5), None),
        ((5,), None),
        ((2, 3, 2, 3, 5), None),
    ],
)
def test_one_vector_a_position(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    context = copy_context()
    context.run(begin_forward, nn.Identity(), (), {"inputs_embeds": torch.zeros(2, 3, 5)})
    x = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    if expected is None:
        with pytest.raises(StudyError, match="not one vector a position"):
            context.run(by_position, x, key="x")
    else:
        assert context.run(by_position, x, key="x").shape == expected


def test_streams_that_cannot_be_told_from_positions_are_refused() -> None:
    context = copy_context()
    context.run(begin_forward, nn.Identity(), (torch.zeros(4, 4),), {})
    with pytest.raises(StudyError, match="not one vector a position"):
        context.run(by_position, torch.zeros(4, 4, 4, 8), key="residual of layer 0")


@pytest.mark.parametrize("tokens_by", [lambda tokens: ((tokens,), {}), lambda tokens: ((), {"input_ids": tokens})])
def test_tokens_by_position_or_by_name(tokens_by: Callable[[Tensor], Any]) -> None:
    structure = find_structure(zoo.tiny_model("opt"))
    args, kwargs = tokens_by(zoo.tokens())
    shapes = set()
    with torch.no_grad(), tap_hooks(structure, ("mlp_in",), lambda tap, layer, x: shapes.add(x.shape)):
        structure.backbone(*args, **kwargs)
    assert shapes == {(*zoo.tokens().shape, zoo.D_MODEL)}
