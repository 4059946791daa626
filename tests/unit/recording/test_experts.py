from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from torch import Tensor, nn

from outlier_moe.architectures.moe_hooks import ExpertOutputs, moe_hooks, pin_experts
from outlier_moe.architectures.moe_parts import Experts, SharedExpert, find_experts
from outlier_moe.architectures.structure import find_structure
from outlier_moe.architectures.tap_hooks import tap_hooks
from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.taps import Tap
from outlier_moe.recording.experts import ExpertObserver, MoeTables, load_cv, load_entropy
from outlier_moe.tables import moe as schemas_moe
from tests import moe_twin, zoo
from tests.moe_twin import ordered_output

LADDER = Ladder(1.0)
WIDTH = 3


def check(
    tables: MoeTables, outputs: list[ExpertOutputs], mlp_in: Mapping[int, Tensor], experts: Mapping[int, Experts]
) -> None:
    """Hold tables against the plain ones."""
    for frame, schema, rows in (
        (tables.experts.sort("layer", "expert", "sequence"), schemas_moe.Expert, moe_twin.expert_rows),
        (tables.routers.sort("layer", "sequence"), schemas_moe.Router, moe_twin.router_rows),
    ):
        schema.validate(frame)
        expected = pl.DataFrame(rows(outputs, mlp_in, experts, LADDER), schema=frame.schema)
        assert_frame_equal(frame, expected, check_exact=False, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("name", ["qwen2_moe", "longcat_flash", "llama4_text+maverick", "jetmoe", "zaya", "nemotron_h"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_of_a_model(name: str, dtype: torch.dtype) -> None:
    structure = find_structure(zoo.tiny_model(name, dtype=dtype))
    pin_experts(structure)
    experts = find_experts(structure)
    observer = ExpertObserver(experts, LADDER, first_sequence=0)
    outputs: list[ExpertOutputs] = []
    mlp_in: dict[int, Tensor] = {}

    def note(tap: Tap, layer: int, x: Tensor) -> None:
        mlp_in[layer] = x.clone()
        observer.observe(tap, layer, x)

    def note_experts(seen: ExpertOutputs) -> None:
        outputs.append(replace(seen, output=seen.output.clone()))
        observer.observe_experts(seen)

    with torch.no_grad(), tap_hooks(structure, ("mlp_in",), note), moe_hooks(structure, note_experts):
        structure.backbone(input_ids=zoo.tokens(), use_cache=False)
    tables = observer.tables()
    assert set(tables.experts["layer"]) == set(tables.routers["layer"]) == set(experts)
    check(tables, outputs, mlp_in, experts)
    # What was handed over is forgotten.
    assert observer.tables().experts.is_empty()


def made_up(n_routed: int, n_identity: int, n_shared: int) -> Experts:
    shared = tuple(SharedExpert(nn.Identity(), None) for _ in range(n_shared))
    return Experts(nn.Identity(), "indexed", n_routed, n_identity, shared)


values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float("nan"), float("inf"), float("-inf"), 1e-40, 3e38]),
    st.floats(width=32),
)


class Raw(NamedTuple):
    """A layer in plain numbers: beartype draws lots of its own, which a strategy must not."""

    shape: tuple[int, int, int]
    """Sequences, positions, choices."""
    n_routed: int
    n_shared: int
    choices: list[list[int]]
    """For each token an order of the experts."""
    gates: list[float]
    outputs: list[float]
    mlp_in: list[float]
    order: list[int]
    """In which the pairs come."""


@st.composite
def layers(draw: st.DrawFn) -> Raw:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 2)))
    n_tokens = shape[0] * shape[1]
    n_routed, n_shared = draw(st.integers(2, 5)), draw(st.integers(0, 2))

    def some(elements: st.SearchStrategy[float], n: int) -> list[float]:
        return draw(st.lists(elements, min_size=n, max_size=n))

    return Raw(
        shape,
        n_routed,
        n_shared,
        [draw(st.permutations(range(n_routed))) for _ in range(n_tokens)],
        some(st.sampled_from([0.0, 0.25, 0.5, 1.0]), n_tokens * shape[2]),
        some(values, n_tokens * (shape[2] + n_shared) * WIDTH),
        some(values, n_tokens * WIDTH),
        draw(st.permutations(range(n_tokens * shape[2]))),
    )


def unpacked(raw: Raw) -> tuple[Experts, list[ExpertOutputs], Tensor]:
    """Experts, what they put out in layer 7 and what was read there."""
    n_sequences, n_positions, n_choices = raw.shape
    own = torch.tensor(raw.outputs).reshape(n_sequences, n_positions, n_choices + raw.n_shared, WIDTH)
    expert = torch.tensor([order[:n_choices] for order in raw.choices]).reshape(raw.shape)
    gate = torch.tensor(raw.gates).reshape(raw.shape)
    outputs = [_in_order(False, expert, gate, own[:, :, :n_choices], raw.order)]
    for index in range(raw.n_shared):
        number = torch.full_like(expert[..., :1], raw.n_routed + index)
        alone = own[:, :, n_choices + index].unsqueeze(2)
        outputs.append(_in_order(True, number, torch.ones_like(gate[..., :1]), alone, list(range(number.numel()))))
    mlp_in = torch.tensor(raw.mlp_in).reshape(n_sequences, n_positions, WIDTH)
    return made_up(raw.n_routed, 1, raw.n_shared), outputs, mlp_in


def _in_order(shared: bool, expert: Tensor, gate: Tensor, own: Tensor, order: list[int]) -> ExpertOutputs:
    pair = torch.tensor(order)
    return ExpertOutputs(7, shared, expert, gate, own.flatten(0, 2)[pair], pair, None)


def tabulate(experts: Experts, outputs: list[ExpertOutputs], mlp_in: Tensor, *, first_sequence: int = 0) -> MoeTables:
    observer = ExpertObserver({7: experts}, LADDER, first_sequence=first_sequence)
    for seen in outputs:
        observer.observe_experts(seen)
    # Where a family reads several tensors, mlp_in comes after the experts.
    observer.observe("mlp_in", 7, mlp_in)
    observer.observe("attn_in", 7, mlp_in + 1)
    observer.observe("mlp_in", 3, mlp_in + 1)
    return observer.tables()


@settings(max_examples=200)
@given(raw=layers())
def test_tables_of_anything(raw: Raw) -> None:
    experts, outputs, mlp_in = unpacked(raw)
    check(tabulate(experts, outputs, mlp_in), outputs, {7: mlp_in}, {7: experts})


@settings(max_examples=100)
@given(raw=layers())
def test_sequences_may_come_in_any_chunks(raw: Raw) -> None:
    experts, outputs, mlp_in = unpacked(raw)
    alone = [
        tabulate(experts, [_one(seen, s) for seen in outputs], mlp_in[s : s + 1], first_sequence=40 + s)
        for s in range(len(mlp_in))
    ]
    whole = tabulate(experts, outputs, mlp_in, first_sequence=40)
    for together, apart, keys in (
        (whole.experts, [tables.experts for tables in alone], ["expert", "sequence"]),
        (whole.routers, [tables.routers for tables in alone], ["sequence"]),
    ):
        assert_frame_equal(together.sort(keys), pl.concat(apart).sort(keys), check_exact=True)


def _one(seen: ExpertOutputs, sequence: int) -> ExpertOutputs:
    chosen = slice(sequence, sequence + 1)
    expert, gate = seen.expert[chosen], seen.gate[chosen]
    return _in_order(seen.shared, expert, gate, ordered_output(seen)[chosen], list(range(expert.numel())))


def test_mlp_in_is_needed() -> None:
    observer = ExpertObserver({7: made_up(2, 0, 0)}, LADDER, first_sequence=0)
    number, one = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1)
    observer.observe_experts(_in_order(False, number, one, torch.ones(1, 1, 1, 2), [0]))
    with pytest.raises(KeyError):
        observer.tables()


def test_a_half_of_the_experts_with_all_the_load() -> None:
    # ln(4) / ln(8), and loads of 2 and 0 about a mean of 1.
    load = torch.tensor([2, 0, 2, 0, 2, 0, 2, 0]).numpy()
    assert load_entropy(load) == pytest.approx(2 / 3)
    assert load_cv(load) == pytest.approx(1.0)
    assert load_entropy(load * 0) is None
    assert load_cv(load * 0) is None
    assert load_entropy(load[:1]) == 1.0
