from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.errors import StudyError
from outlier_moe.judging.experts import summarise_experts
from outlier_moe.tables import moe as schemas_moe
from tests import moe_twin

LADDER = Ladder(1.0)
N_EDGES = 3


def router(**changes: object) -> dict[str, object]:
    """One row of the routers' table: two experts, of which one works on all four tokens."""
    row = {
        "layer": 0,
        "sequence": 0,
        "n_experts": 2,
        "n_choices": 1,
        "n_tokens": 4,
        "n_dead": 1,
        "load_entropy": 0.0,
        "load_cv": 1.0,
        "top_gate_share_sum": 4.0,
        "n_outlier_tokens": [2, 1],
        "outlier_top_gate_share_sum": [2.0, 1.0],
    }
    return row | changes


def expert(**changes: object) -> dict[str, object]:
    """One row of the experts' table."""
    row = {
        "layer": 0,
        "expert": 0,
        "sequence": 0,
        "kind": "routed",
        "n_tokens": 4,
        "gate_sum": 2.0,
        "n_outlier_tokens": [2, 1],
        "peak": 5.0,
        "peak_feature": 3,
        "peak_position": 1,
        "peak_gate": 0.5,
        "n_nonfinite": 0,
    }
    return row | changes


def frames(experts: list[dict[str, object]], routers: list[dict[str, object]]) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    made = pl.DataFrame(experts, schema=schemas_moe.Expert.create_empty().schema)
    routed = pl.DataFrame(routers, schema=schemas_moe.Router.create_empty().schema)
    return schemas_moe.Expert.validate(made).lazy(), schemas_moe.Router.validate(routed).lazy()


@st.composite
def recordings(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables of two layers and two sequences that agree with one another."""
    experts, routers = [], []
    n_experts, n_shared = draw(st.integers(1, 4)), draw(st.integers(0, 1))
    for layer in (2, 5):
        for sequence in range(2):
            # One expert a token, none for some of them; the highest edge that the token reaches.
            picked = draw(st.lists(st.integers(-1, n_experts - 1), min_size=1, max_size=6))
            tops = [draw(st.integers(0, N_EDGES)) for _ in picked]
            sent = [top for number, top in zip(picked, tops, strict=True) if number >= 0]
            counts = at_edges(sent)
            routers.append(
                router(
                    layer=layer,
                    sequence=sequence,
                    n_experts=n_experts,
                    n_tokens=len(sent),
                    top_gate_share_sum=float(len(sent)),
                    n_outlier_tokens=counts,
                    outlier_top_gate_share_sum=[draw(st.floats(0, count)) for count in counts],
                )
            )
            numbers = {**{number: [] for number in picked if number >= 0}}
            for number, top in zip(picked, tops, strict=True):
                if number >= 0:
                    numbers[number].append(top)
            if n_shared:
                numbers[n_experts] = tops
            for number, mine in numbers.items():
                experts.append(
                    expert(
                        layer=layer,
                        expert=number,
                        sequence=sequence,
                        kind="shared" if number == n_experts else "routed",
                        n_tokens=len(mine),
                        gate_sum=draw(st.floats(0, 8)),
                        n_outlier_tokens=at_edges(mine),
                        peak=float(draw(st.integers(0, 3))),
                        n_nonfinite=draw(st.integers(0, 2)),
                    )
                )
    made, routed = frames(experts, routers)
    return made.collect(), routed.collect()


def at_edges(tops: list[int]) -> list[int]:
    counts = [sum(top > k for top in tops) for k in range(N_EDGES)]
    return [count for count in counts if count]


@settings(max_examples=150)
@given(tables=recordings(), k=st.integers(0, N_EDGES))
def test_summaries_are_those_of_the_definitions(tables: tuple[pl.DataFrame, pl.DataFrame], k: int) -> None:
    experts, routers = tables
    magnitude = float(LADDER.edges[k])
    made = summarise_experts(experts.lazy(), routers.lazy(), ladder=LADDER, magnitude=magnitude).collect()
    schemas_moe.ExpertSummary.validate(made)
    expected = pl.DataFrame(moe_twin.expert_summary(experts, routers, k), schema=made.schema)
    assert_frame_equal(made, expected, check_exact=False, rel_tol=1e-9, abs_tol=1e-7)


def test_the_expert_of_the_outlier_tokens() -> None:
    # Four tokens: both outlier tokens go to expert 1, with one of the others.
    experts = [
        expert(expert=0, n_tokens=1, n_outlier_tokens=[], peak=1.0),
        expert(expert=1, n_tokens=3, n_outlier_tokens=[2], peak=744.0),
    ]
    tables = frames(experts, [router(n_dead=0, n_outlier_tokens=[2], outlier_top_gate_share_sum=[1.5])])
    by_expert = summarise_experts(*tables, ladder=LADDER, magnitude=1.0).collect()
    assert by_expert["outlier_lift"].to_list() == [0.0, 2.0]
    assert by_expert["peak"].to_list() == [1.0, 744.0]


def test_no_token_reaches_the_magnitude() -> None:
    tables = frames([expert()], [router()])
    high = float(LADDER.edges[40])
    by_expert = summarise_experts(*tables, ladder=LADDER, magnitude=high).collect()
    assert by_expert["n_outlier_tokens"].to_list() == [0]
    assert by_expert["outlier_lift"].to_list() == [None]


def test_a_magnitude_off_the_ladder_or_under_the_floor() -> None:
    tables = frames([expert()], [router()])
    for magnitude, problem in ((1.01, "not on the ladder"), (0.5, "outside the recorded range")):
        with pytest.raises(StudyError, match=problem):
            summarise_experts(*tables, ladder=LADDER, magnitude=magnitude)
